"""Any Python identifier may name an attribute: all commands answer the same, number for number, as under plain names."""

from __future__ import annotations

import csv
import json
import keyword
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch

from datasets import Graph, SchemaError, Variable, open_dataset
from datasets.errors import UserError, shown
from dscm import DSCM
from dscm.exports.dataset import Export, open_export
from dscm.exports.files import COLUMNS
from dscm.figures.style import page, save_figure
from dscm.finetuning.objective import CounterfactualTraining
from experiments.report.html import Section, table, write_report
from mechanisms.anticausal.model import load_predictors
from mechanisms.base import term_of
from mechanisms.runs.command import run_command
from mechanisms.runs.files import MetricsLog, load
from mechanisms.runs.tables import markdown
from mechanisms.training.noise import Noise
from mechanisms.training.state import CHECKPOINT, METRICS, WEIGHTS
from pgm.interventions import parse_do
from pgm.scm import AttributeSCM, noise_site

# causes of the image, the last one its label; then what the image does not show: words of modules, of training, of exports, of tables
SHOWN = ("loss", "forward", "type", "training")
ALL = (*SHOWN, "source", "file", "draw", "intervention", "truth", "images", "index", "weights", "label", "row", "loss_noise", "rows", "_x")
PLAIN = {name: f"a{k:02d}" for k, name in enumerate(sorted(ALL))}  # in the same order, as parents are sorted
STEPS = ["--steps", "3", "--batch-size", "16", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--widths", "8:8,4:8,1:8", "--z-dim", "2", "--embedding", "8"]

FILE = '''
from typing import ClassVar
import torch
from datasets import CausalDataset, Variable

NAMES = {names!r}
LOSS, FORWARD, TYPE, TRAINING = NAMES[:4]

class Named(CausalDataset):
    variables = (Variable(LOSS, "real"), Variable(FORWARD, "real", (LOSS,)), Variable(TYPE, "positive"),
                 Variable(TRAINING, "binary", (LOSS,), classes=("disc", "square")),
                 *(Variable(name, "real", (LOSS,)) for name in NAMES[4:]),
                 Variable("image", "image", NAMES[:4], shape=(1, 8, 8)))
    label, spurious = TRAINING, (FORWARD,)
    true_images_under: ClassVar = (FORWARD, TYPE)

    def attributes(self, split):
        generator = torch.Generator().manual_seed(len(split))
        a, b, c, *rest = torch.randn(3 + len(NAMES[4:]), 64, generator=generator)
        square = torch.rand(64, generator=generator) < torch.sigmoid(2 * a)
        return dict(zip(NAMES, (a, 2 * a + b, c.exp(), square.long(), *(a + r for r in rest)), strict=True))

    def paint(self, values):
        x = torch.zeros(len(values[LOSS]), 1, 8, 8)
        x[:, :, 1:7, 1:4] = torch.sigmoid(values[FORWARD])[:, None, None, None]
        x[:, :, 2:5, 4:7] = torch.sigmoid(values[LOSS])[:, None, None, None]
        x[:, :, 7] = (values[TYPE] / 20).clamp(0, 1)[:, None, None]
        x[:, :, 0] = values[TRAINING][:, None, None]
        return x

    def load(self, split):
        values = self.attributes(split)
        return {{**values, "image": self.paint(values)}}

    def true_counterfactual(self, split, index, do):
        index, values = self.intervened(split, index, do)
        return {{**values, "image": self.paint(values)}}
'''


def command(module: str, *arguments: object) -> None:
    found = import_module(module)
    run_command(found.Options, found.main, [str(a) for a in arguments])


def through_all(folder: Path, names: tuple[str, ...]) -> Path:
    """Every command that reads or writes attributes, each with as little as it takes."""
    folder.mkdir()
    (folder / "named.py").write_text(FILE.format(names=names))
    loss, forward, label = names[0], names[1], names[3]
    data, run = ["--dataset", folder / "named.py", "--run", folder / "run"], folder / "run"
    command("pgm.train", *data, *STEPS, "--learning-rate", 0.01, "--validations", 2)
    command("mechanisms.train", *data, *STEPS, *SMALL)
    command("mechanisms.predictors", *data, *STEPS, "--width", 4, "--blocks", 1, "--features", 4, "--shift", 0)
    command("dscm.calibrate", "--run", run, "--count", 16, "--device", "cpu")
    command("dscm.evaluate", "--run", run, "--out", folder / "metrics.json", "--count", 16, "--device", "cpu", "--draws", 2,
            "--draw-images", 4, "--parts", "truth", "effectiveness", "minimality", "calibration")
    command("dscm.counterfactual", "--run", run, "--do", f"{loss}=1", "--do", f"{label}=square", "--count", 2, "--device", "cpu",
            "--out", folder / "grid.png")
    for form in ("pt", "npz", "png"):
        command("dscm.export", "--run", run, "--do", f"{forward}+=1", "--do", f"{label}=1", "--count", 5, "--draws", 2,
                "--device", "cpu", "--format", form, "--out", folder / form)
    command("dscm.export", "--run", run, "--do", f"{forward}=1", "--truth", "--count", 3, "--device", "cpu", "--out", folder / "true")
    command("experiments.train", *data, "--algorithm", "erm,groupdro", *STEPS, "--network", "mlp", "--seeds", 1)
    command("experiments.robustness", "--run", run, "--model", run, "--count", 32, "--device", "cpu", "--out", folder / "robustness")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of all results under names that mean something elsewhere, and under plain ones."""
    root = tmp_path_factory.mktemp("names")
    return through_all(root / "odd", ALL), through_all(root / "plain", tuple(PLAIN[name] for name in ALL))


def plainly(text: str) -> str:
    """A text with all names plain, its own words too where they are among them."""
    return re.sub(r"\w+", lambda word: PLAIN.get(word[0], word[0]), text)


@pytest.mark.parametrize("file", [f"run/{part}/{WEIGHTS}" for part in ("pgm", "image", "predictors")])
def test_weights_are_the_same(both, file):
    odd, plain = (load(folder / file)["weights"] for folder in both)
    assert len(odd) == len(plain) and all(torch.equal(a, b) for a, b in zip(odd.values(), plain.values(), strict=True))


def test_terms_of_training_are_the_same_and_none_is_lost(both):
    odd, plain = (MetricsLog.read(folder / "run" / "pgm" / METRICS)[-1] for folder in both)
    for part in ("train", "valid"):
        assert odd[part].keys() == {"loss", *map(term_of, ALL)}
        assert odd[part] == {"loss": plain[part]["loss"], **{term_of(n): plain[part][term_of(PLAIN[n])] for n in ALL}}
        assert odd[part]["loss"] == pytest.approx(sum(odd[part][term_of(n)] for n in ALL), rel=1e-5)
    assert load(both[0] / "run" / "pgm" / CHECKPOINT)["meter"]["sums"] == {}


def test_evaluations_are_the_same(both):
    odd, plain = (json.loads((folder / "metrics.json").read_text())["scores"] for folder in both)
    assert odd and plainly(json.dumps(odd)) == plainly(json.dumps(plain))
    odd, plain = (json.loads((folder / "run" / "predictors" / "test.json").read_text())["attributes"] for folder in both)
    assert {PLAIN[name]: figures for name, figures in odd.items()} == plain


def test_calibrations_are_the_same(both):
    odd, plain = (json.loads((folder / "run" / "calibration.json").read_text())["spread"] for folder in both)
    assert odd.keys() == set(SHOWN)
    assert plainly(json.dumps(odd)) == plainly(json.dumps(plain))


@pytest.mark.parametrize("form", ["pt", "npz", "png", "true"])
def test_exports_are_the_same_and_keep_every_attribute(both, form):
    odd, plain = (open_export(folder / form) for folder in both)
    assert list(odd.attributes) == [v.name for v in Graph(open_dataset(str(both[0] / "named.py")).variables).attributes]
    for name, values in odd.attributes.items():
        assert torch.equal(values, plain.attributes[PLAIN[name]])
    assert torch.equal(odd.source, plain.source) and torch.equal(odd.draw, plain.draw)
    assert tuple(map(plainly, odd.interventions)) == plain.interventions
    index = range(len(odd))
    assert all(torch.equal(torch.as_tensor(odd.images[k]), torch.as_tensor(plain.images[k])) for k in index)
    if form == "true":
        assert torch.equal(odd.truth, plain.truth)
    with open(next((both[0] / form).rglob("*.csv")), newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        assert rows.fieldnames == [*COLUMNS, *odd.attributes] and len(set(rows.fieldnames)) == len(rows.fieldnames)
        assert [float(row["source"]) for row in rows] == pytest.approx(odd.attributes["source"][: 10 if form != "true" else 3].tolist())


def test_arrays_of_an_export_hold_attributes_apart(both):
    with np.load(next((both[0] / "npz").rglob("*.npz"))) as arrays:
        assert set(arrays) == {"images", "source", "draw", *(f"attribute_{name}" for name in ALL)}
        assert (arrays["source"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]).all()
    assert set(load(next((both[0] / "pt").rglob("*.pt")), "export")["attributes"]) == set(ALL)


def test_robustness_and_labels_of_columns_are_the_same(both):
    odd, plain = (list(csv.reader((folder / "robustness" / "robustness.csv").read_text().splitlines())) for folder in both)
    columns = [k for k, name in enumerate(odd[0]) if "seconds" not in name]
    assert len(odd) > 20 and "do(forward=" in {row[odd[0].index("stress")][:11] for row in odd}
    for one, other in zip(odd, plain, strict=True):
        assert [plainly(one[k]) for k in columns] == [plainly(other[k]) for k in columns]


def test_counterfactual_training_is_the_same(both):
    terms = []
    for folder in both:
        dscm, batch = DSCM.load(folder / "run"), open_dataset(str(folder / "named.py")).split("train").batch(range(16))
        module = CounterfactualTraining(dscm.image, dscm.attributes, load_predictors(folder / "run"))
        terms.append(module(batch, Noise(0, torch.device("cpu"))))
    assert terms[0].keys() == terms[1].keys() and all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


# ---------------------------------------------------------------------------------------------------- Pyro
def test_sites_of_noise_are_nobodys_name():
    names = ("x", "x_noise", "rows", "noise")
    graph = Graph([*(Variable(n, "real") for n in names), Variable("image", "image", names, shape=(1, 8, 8))])
    values = {n: torch.randn(50, generator=torch.Generator().manual_seed(k)) for k, n in enumerate(names)}
    scm = AttributeSCM(graph.fitted(values))
    with torch.no_grad():
        assert set(scm.structural(3)) == set(names) == set(scm.model(3))
    assert not any(noise_site(n).isidentifier() for n in names)


@pytest.mark.parametrize("name", ["", " ", "a b", "a-b", "1st", "a.b", "a\n", "a\x1b[2J", *keyword.kwlist])
def test_what_is_no_identifier_is_refused_when_made(name):
    with pytest.raises(SchemaError, match=re.escape(shown(repr(name)))):
        Variable(name, "real")


# ---------------------------------------------------------------------------------------------------- what is shown
EVIL = "\x1b[2J\x1b]0;owned\x07\nerror: none\u202egnp.\udc80"


def test_messages_write_control_sequences_out(capsys):
    def main(options):
        print(warnings.formatwarning(f"about {EVIL}", UserWarning, "", 0), end="", file=sys.stderr)  # which pytest else keeps
        raise UserError(f"the file {EVIL}")

    with pytest.raises(SystemExit):
        run_command(import_module("dscm.calibrate").Options, main, [])
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and all(line.isprintable() for line in said.splitlines()) and r"\x1b[2J" in said and r"\n" in said


def test_ordinary_text_of_any_script_is_shown_as_it_is():
    for text in ("größe", "年齢\u3000歳", "می\u200cخواهم", "👩\u200d🔬", "a | b", "<b>$x$</b>", "C:\\x"):
        assert shown(text) == text


def test_tables_keep_their_lines_and_columns():
    text = markdown(("class", "n"), [("a|b", "1"), (EVIL, "2")])
    assert len(text.splitlines()) == 4 and all(line.isprintable() for line in text.splitlines())
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines()] == [3] * 4


@pytest.mark.parametrize("words", [{"classes": ("a", EVIL)}, {"unit": EVIL, "kind": "real"}])
def test_classes_and_units_that_cannot_be_shown_are_refused(words):
    with pytest.raises(SchemaError, match="'c'") as error:
        Variable("c", **{"kind": "categorical", **words})
    assert str(error.value).isprintable()


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_figures_show_dollars_and_braces_as_they_are(tmp_path, ending):
    """Formulas that cannot be set, in all places where text comes from data: titles, ticks, legends."""
    names = [r"$\frac$", "$ to $$", "a_b^c", "_hidden", "<script>alert(1)</script>", "&amp;"]
    figure = page(6, 3)
    axes = figure.subplots()
    axes.set_xticks(range(len(names)), names)
    axes.set_title(r"$\undefined{$")
    figure.legend([axes.plot([0], [0])[0]], [r"$\nothing$"])
    axes.set_xlim(-1, len(names))
    figure.tight_layout()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        save_figure(figure, tmp_path / f"x.{ending}")
    if ending == "svg":
        told = set(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
        assert {*names, r"$\undefined{$", r"$\nothing$"} <= told
        assert "<script" not in (tmp_path / "x.svg").read_text(encoding="utf-8")


def test_reports_show_names_and_run_nothing(tmp_path):
    name = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    write_report(tmp_path / "r.html", name, name, [Section(name, table((name,), [(name,)], name))], {})
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img src=x" not in text and text.count("&lt;script&gt;alert(1)") >= 4


def test_folders_of_an_export_stay_inside_it():
    variable = Variable("c", "categorical", classes=("../../x", "/etc/passwd", "..", "a" * 300, "C:\\x", "é"))
    graph = Graph([variable, Variable("image", "image", ("c",), shape=(1, 8, 8))])
    labels = [label for name in variable.classes for label, _ in parse_do(f"c={name}", graph)]
    folders = Export(None, None, "test", 1, dict.fromkeys(labels, {})).folders
    assert len(set(folders)) == 6 and all(len(folder) < 100 and Path(folder).name == folder and folder[0] == "0" for folder in folders)


def test_exports_know_no_folder_of_this_machine(both, tmp_path):
    about = Export(*(None,) * 4, {}, options={"data_dir": tmp_path / "xrays", "more": str(tmp_path), "win": r"C:\Users\me\x", "seed": 3,
                                              "share": "a/b"})
    assert about.kept_options == {"data_dir": "xrays", "more": tmp_path.name, "win": "x", "seed": "3", "share": "a/b"}
    for path in [p for form in ("pt", "npz", "png", "true") for p in (both[0] / form).rglob("*") if p.is_file()]:
        assert str(both[0]).encode() not in path.read_bytes()
