"""The quickstart from end to end, in seconds: what it leaves, what the report holds, and what a second run does."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.schema import Graph, SchemaError, Variable
from dscm.evaluation.evaluation import Evaluation
from dscm.evaluation.questions import Questions
from experiments import quickstart as command
from experiments.report.classifiers import ClassifierTask, classifier_task
from experiments.report.figures import default_do
from experiments.report.graph import graph_svg
from experiments.report.html import Section, bullets, prose, table, write_report
from experiments.report.options import Options
from experiments.training.store import list_trained
from mechanisms.runs.files import MetricsLog, RunError, load
from tests.errors import naming

DIGITS = DataOptions("morphomnist", option=("train_digits=96", "valid_digits=32", "test_digits=32", "renderings=1"))
FIGURES = ("counterfactuals", "attributes", "observed", "sampled", "sampled_mean", "training_pgm", "training_image",
           "training_predictors", "metrics_floors", "metrics_cycles", "metrics_calibration")
CLASSIFIERS = ("robustness", "agreement")  # figures about them
TRAINED = ("pgm", "image", "predictors")
CLASSIFIER = "confounded/classifiers/cf-augmentation/seed-0/mechanism.pt"
MINE = '''
import torch
from datasets import CausalDataset, Variable

class Mine(CausalDataset):
    variables = (
        Variable("size", "positive", unit="<b>mm & more</b>"),
        Variable("kind", "categorical", parents=("size",), classes=("cat", "<i>dog</i>", "eel")),
        Variable("site", "binary"),
        Variable("image", "image", parents=("kind", "size"), shape=(3, 16, 16)),
    )

    def load(self, split):
        generator = torch.Generator().manual_seed(len(split))
        size = 1 + torch.rand(40, generator=generator)
        kind = (torch.rand(40, generator=generator) * 3).long()
        image = (size / 2 * (kind + 1) / 3)[:, None, None, None] * torch.rand(40, 3, 16, 16, generator=generator)
        return {"size": size, "kind": kind, "site": (size > 1.5).long(), "image": image.clamp(0, 1)}
'''


class References(HTMLParser):
    """Everything that the page would fetch or link to, and the tags it is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images, self.links, self.tags, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value)
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_self_contained(page: str) -> None:
    found = References(page)
    assert not found.open
    assert found.images and all(source.startswith("data:image/png;base64,") for source in found.images)
    assert all(link.startswith("#") for link in found.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"https?://|@import|url\((?!#)", page)


def quickstart(options: Options) -> Path:
    """The command; the path of its report."""
    command.main(options)
    return options.folder / "report.html"


def task_of(data: DataOptions, run: Path) -> ClassifierTask:
    return classifier_task(data.open(), data, run, 256, 0)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """The options of a finished run."""
    options = Options(data=DIGITS, run=tmp_path_factory.mktemp("quick") / "run", smoke=True, device="cpu", count=2)
    quickstart(options)
    return options


def test_leaves_everything_it_promises(smoke: Options) -> None:
    run = smoke.folder
    for name in ("run.json", "report.html", "interventions.json", *(f"{m}/{f}.pt" for m in TRAINED for f in ("mechanism", "checkpoint"))):
        assert (run / name).stat().st_size > 0
    assert {path.stem for path in (run / "figures").iterdir()} == set(FIGURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (run / "figures").iterdir())
    evaluation = Evaluation.load(run / "metrics.json")
    assert [score.intervention for score in evaluation.find("truth_l1")] == ["do(thickness)", "do(intensity)"]
    assert all(score.floors["identity"] > 0 for score in evaluation.find("truth_l1"))
    assert evaluation.find("effectiveness_accuracy", "do(digit)", "digit") and evaluation.about["run"] == str(run)
    Questions.load(run / "interventions.json", smoke.data.open(), "test")
    assert {path.stem for path in (run / "robustness").glob("*.png")} == set(CLASSIFIERS)
    assert list_trained(run / "confounded") == [("erm", 0), ("cf-augmentation", 0), ("groupdro", 0)]
    assert not list(run.rglob("*.tmp"))


def test_report_is_one_file_that_needs_no_other(smoke: Options) -> None:
    page = (smoke.folder / "report.html").read_text()
    check_self_contained(page)
    assert len(References(page).images) == len(FIGURES) + len(CLASSIFIERS)
    for expected in ("<svg", "do(thickness)", "floor: copying", "Every metric", "effectiveness_accuracy", "coverage_attribute",
                     "there and back", "python -m pgm.train", "python -m experiments.robustness", "python -m dscm.evaluate",
                     "Which classifiers survive", "--option train_digits=96", str(smoke.folder)):
        assert expected in page


def test_second_run_keeps_the_training_and_remakes_the_report(smoke: Options, capsys: pytest.CaptureFixture[str]) -> None:
    run = smoke.folder
    kept = {name: (run / name / "mechanism.pt").read_bytes() for name in TRAINED}
    weights = load(run / CLASSIFIER)["weights"]
    rows, scores = MetricsLog.read(run / "image" / "metrics.jsonl"), Evaluation.load(run / "metrics.json").scores
    (run / "report.html").unlink()
    quickstart(smoke)
    assert "holds a training" in capsys.readouterr().out
    assert {name: (run / name / "mechanism.pt").read_bytes() for name in TRAINED} == kept
    assert all(torch.equal(value, weights[name]) for name, value in load(run / CLASSIFIER)["weights"].items())
    assert MetricsLog.read(run / "image" / "metrics.jsonl") == rows
    assert Evaluation.load(run / "metrics.json").scores == scores
    assert (run / "report.html").exists()


def test_refuses_before_it_trains(smoke: Options, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--resume"):
        quickstart(replace(smoke, resume=False))
    with pytest.raises(RunError, match="seed"):
        quickstart(replace(smoke, seed=1))
    for wrong, said in ((replace(smoke, do=("thicknes=1",)), "thickness"), (replace(smoke, count=0), "--count"),
                        (replace(smoke, minutes=-1.0, smoke=False), "--minutes")):
        with pytest.raises(UserError, match=naming(said)):
            quickstart(replace(wrong, run=tmp_path / "run"))
        assert not (tmp_path / "run" / "pgm").exists()


def test_users_file_without_truth_or_measure(tmp_path: Path) -> None:
    (tmp_path / "my scm.py").write_text(MINE)
    data = DataOptions(str(tmp_path / "my scm.py"))
    page = quickstart(Options(data=data, run=tmp_path / "run", smoke=True, device="cpu", count=2)).read_text()
    check_self_contained(page)
    evaluation = Evaluation.load(tmp_path / "run" / "metrics.json")
    assert not evaluation.find("truth_l1") and evaluation.find("effectiveness_predicted") and evaluation.find("free_energy")
    assert "Left out, since the data cannot be asked: no class among the image's causes could be confounded" in html.unescape(page)
    for expected in ("What could not be computed", "measures nothing on images", "does not define <code>true_counterfactual</code>",
                     "&lt;b&gt;mm &amp; more&lt;/b&gt;", "&lt;i&gt;dog&lt;/i&gt;", "my scm.py"):
        assert expected in page
    assert not {"b", "i"} & set(References(page).tags)
    assert [text.partition("=")[0] for text in default_do(data.open())] == ["size", "kind"]  # site does not cause the image


def test_nothing_to_ask_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "scm.py").write_text(MINE.replace('("kind", "size")', "()"))
    with pytest.raises(UserError, match=naming("Mine")):
        quickstart(Options(data=DataOptions(str(tmp_path / "scm.py")), run=tmp_path / "run", smoke=True))
    assert not (tmp_path / "run" / "pgm").exists()


def test_what_classifiers_are_trained_on(tmp_path: Path) -> None:
    """A data set that says what is spurious as it is; else a selection of it, which its own options travel into."""
    declared = DataOptions("colourmnist", option=("train_digits=60", "valid_digits=20", "test_digits=20"))
    chosen = task_of(declared, tmp_path)
    assert (chosen.data, chosen.run, chosen.label, chosen.tied) == (declared, tmp_path, "digit", "colour")
    chosen = task_of(DIGITS, tmp_path)
    assert chosen.run == tmp_path / "confounded" and (chosen.label, chosen.tied) == ("digit", "thickness")
    made = chosen.data.open()
    assert made.title == "confounded morphomnist" and made.inner.train_digits == 96
    (tmp_path / "scm.py").write_text(MINE)
    mine = DataOptions(str(tmp_path / "scm.py"))
    with pytest.raises(SchemaError, match=naming("image causes")):  # size causes kind, and nothing else causes the image
        task_of(mine, tmp_path)


@pytest.mark.parametrize(("declared", "told"), [
    ('label, spurious = "kind", ("size",)', "do(size) Mine 'kind'"),
    ('label, spurious = "kind", ("weight",)', "'weight'"),
    ('label, spurious = "size", ("site",)', "'size'"),
    ('label, spurious = "kind", ("site",)\n    def subjects(self, split):\n        return torch.zeros(40)',
     "1"),
])
def test_what_a_file_declares_is_checked_first(tmp_path: Path, declared: str, told: str) -> None:
    (tmp_path / "scm.py").write_text(MINE.replace("class Mine(CausalDataset):\n", f"class Mine(CausalDataset):\n    {declared}\n"))
    data = DataOptions(str(tmp_path / "scm.py"))
    with pytest.raises(SchemaError, match=naming(told)):
        task_of(data, tmp_path)


def test_a_task_that_makes_no_sense_costs_that_section_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declared = MINE.replace("class Mine(CausalDataset):\n", 'class Mine(CausalDataset):\n    label, spurious = "kind", ("size",)\n')
    (tmp_path / "scm.py").write_text(declared)
    data = DataOptions(str(tmp_path / "scm.py"))
    page = quickstart(Options(data=data, run=tmp_path / "run", smoke=True, device="cpu", count=2)).read_text()
    assert "do(size) of Mine would change the label 'kind' itself" in html.unescape(page)
    assert capsys.readouterr().out.count("do(size) of Mine would change the label 'kind' itself") == 2  # at once, and in its place
    assert "python -m experiments.robustness" not in page and (tmp_path / "run" / "metrics.json").exists()


def test_help_needs_no_torch() -> None:
    asked = "import sys, experiments.quickstart; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked]).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "experiments.quickstart", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "A few updates of everything" in shown.stdout


def test_graph_is_drawn_whatever_its_shape() -> None:
    chain = [Variable(f"v{k}", "real", (f"v{k - 1}",) if k else ()) for k in range(4)]
    image = Variable("image", "image", ("v0", "v3", "alone"), shape=(1, 8, 8))
    svg = graph_svg(Graph([image, *chain, Variable("alone", "binary")]))
    assert svg.count("<rect") == 6
    assert svg.count("marker-end") == 3 + 3
    boxes = {m[1]: float(m[0]) for m in re.findall(r'<rect x="([-\d.]+)".*?<text[^>]*>(\w+)<', svg)}
    assert boxes["v0"] < boxes["v1"] < boxes["v2"] < boxes["v3"] < boxes["image"]
    lone = graph_svg(Graph([Variable("a", "real"), Variable("image", "image", (), shape=(1, 8, 8))]))
    assert lone.count("<rect") == 2 and "marker-end" not in lone


def test_text_is_escaped_everywhere(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    body = prose(bad) + bullets([bad]) + table([bad], [[bad]], bad)
    write_report(tmp_path / "r.html", bad, bad, [Section(bad, body)], [(bad, bad, bad)])
    assert "script" not in References((tmp_path / "r.html").read_text()).tags
