"""Pictures of what classifiers look at, and the commands ``experiments.explain`` and ``experiments.selective``."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch

from datasets.options import DataOptions
from dscm.figures.style import ORANGE, save_figure
from experiments import explain, selective
from experiments.algorithms.masks import load_masks
from experiments.algorithms.masktune import MaskTune
from experiments.algorithms.registry import ALGORITHMS
from experiments.attribution.methods import ATTRIBUTIONS
from experiments.explanations import explain as explanations
from experiments.explanations.figure import Panel, explanation_figure, heated, outline, prediction_lines
from experiments.explanations.images import chosen_images, chosen_rows
from experiments.explanations.options import ImageChoice, Options
from experiments.networks.registry import rebuild
from experiments.stress import selective as selective_room
from experiments.train import main as train
from experiments.training import store as classifier
from experiments.training.options import Options as TrainOptions
from experiments.training.options import TrainingFlags
from experiments.training.store import Trained, load_trained, trained_task
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load, weights_fingerprint
from mechanisms.training.config import RunOptions
from tests.errors import naming, says

FLAGS = TrainingFlags(epochs=1, batch_size=32, hidden=8, validations=1, validation_rows=16, device="cpu", precision="fp32",
                      optimizer="adam", learning_rate=0.01, schedule="constant")
DATA = DataOptions("spuriousmnist", option=("train_digits=128", "valid_digits=32", "test_digits=24"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with erm (two seeds) and masktune."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    for algorithm, seeds, *settings in (("erm", 2), ("masktune", 1, "iterations=2", "accumulate=true")):
        train(TrainOptions(DATA, RunOptions(folder), algorithm, seeds=seeds, training=FLAGS, set=tuple(settings)))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """What pictures were made of, one after the other: a dictionary of arguments each."""
    seen = []

    def watched(panels, title="", notes=(), **given):
        seen.append({"panels": panels, "title": title, "notes": notes, **given})
        return explanation_figure(panels, title, notes, **given)

    monkeypatch.setattr(explanations, "explanation_figure", watched)
    return seen


def draw(*arguments):
    run_command(Options, explain.main, [*map(str, arguments)])


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# ---------------------------------------------------------------------------------------------------- the picture
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_image_can_be_shown(tmp_path, channels):
    images, heat = torch.rand(2, channels, 10, 8), torch.rand(2, 10, 8)
    lines, wrong = [["c", "d"], ["e"]], torch.tensor([True, False])
    panels = [Panel("image", images, [["a"], ["b"]]), Panel("x\ny", images, lines, heat, heat > 0.5, wrong)]
    figure = explanation_figure(panels, "title", ["note"])
    assert {"title", "note", "image", "x", "y", "a", "b", "c", "d", "e"} <= set(words(figure))
    colored = {text.get_text() for text in figure.axes[0].texts if text.get_color() == ORANGE}
    assert colored == {"c"}
    assert matplotlib.image.imread(save_figure(figure, tmp_path / "x.png")).std() > 0.05
    shown = figure.axes[0].images
    assert len(shown) == 4 and len(figure.axes) == 2  # the scale of the heat is the second


def test_without_heat_there_is_no_scale():
    assert len(explanation_figure([Panel("image", torch.rand(1, 1, 8, 8), [["a"]])]).axes) == 1


def test_heat_is_laid_over_the_image_in_grey():
    image = torch.zeros(3, 2, 2)
    image[2, 0] = 1  # pure blue is as light as white
    pixels = heated(image, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert pixels.shape == (2, 2, 3) and 0 <= pixels.min() and pixels.max() <= 1
    assert (pixels[0] > pixels[1]).all() and (pixels[:, 1].mean(-1) > pixels[:, 0].mean(-1)).all()
    torch.testing.assert_close(heated(image[2:], torch.zeros(2, 2)), heated(image, torch.zeros(2, 2)))


def test_signed_heat_is_red_and_blue():
    against, neither, favour = heated(torch.full((1, 1, 3), 0.5), torch.tensor([[-1.0, 0.0, 1.0]]), signed=True)[0]
    assert against[2] > against[0] + 0.1 and favour[0] > favour[2] + 0.1 and neither.std() < 0.02
    assert len(explanation_figure([Panel("x", torch.rand(1, 1, 4, 4), [["a"]], torch.rand(1, 4, 4) - 0.5)], signed=True).axes) == 2


def test_outlines_go_around_regions():
    region = torch.zeros(4, 5, dtype=torch.bool)
    region[1:3, 2:4] = True
    edges = {tuple(map(tuple, segment)) for segment in outline(region).tolist()}
    assert edges == {((2, 1), (3, 1)), ((3, 1), (4, 1)), ((2, 3), (3, 3)), ((3, 3), (4, 3)),
                     ((2, 1), (2, 2)), ((2, 2), (2, 3)), ((4, 1), (4, 2)), ((4, 2), (4, 3))}
    assert len(outline(torch.ones(4, 5, dtype=torch.bool))) == 2 * (4 + 5) and len(outline(~region & region)) == 0


def test_predictions_in_words():
    lines = prediction_lines(torch.tensor([[0.126, 0.874], [0.9999, 0.0001]]), ("no", "yes"))
    assert lines == [["predicts yes, 87 %"], ["predicts no, 99 %"]]


# ---------------------------------------------------------------------------------------------------- the command
def test_masktune_before_and_after(run, tmp_path, drawn):
    out = tmp_path / "explain.png"
    draw("--run", run, "--rows", "3,0,7", "--split", "train", "--out", out)
    image, before, hidden, after = drawn[0]["panels"]
    assert drawn[0]["title"] == "MaskTune, seed 0: XGradCAM, train images of spuriousmnist" and out.stat().st_size > 5000
    dropped = load_masks(run / "classifiers/masktune/seed-0/masks-2.pt").dropped[[3, 0, 7]]
    assert torch.equal(hidden.outline, dropped)  # what fine-tuning saw
    assert torch.equal(hidden.images, image.images.masked_fill(dropped[:, None], 0))
    rows = DATA.open().split("train").batch([3, 0, 7])
    assert torch.equal(image.images, rows["image"])
    after_one = load(run / "classifiers/masktune/seed-0/iteration-1/mechanism.pt")
    earlier = rebuild(after_one)
    earlier.load_state_dict(after_one["weights"])
    assert before.heading == "before\niteration 1"
    for panel, network in ((before, earlier.eval()), (after, load_trained(run, "masktune", 0).network)):  # the last masks' own network
        with torch.no_grad():
            probabilities = network(rows["image"]).softmax(1)
        assert [line[0] for line in panel.lines] == [line[0] for line in prediction_lines(probabilities, ("0-4", "5-9"))]
        assert torch.equal(panel.wrong, probabilities.argmax(1) != rows["label"])
        assert panel.heat.shape == (3, 28, 28) and not torch.equal(before.heat, after.heat)


def test_masks_of_other_images_are_what_they_would_have_been(run):
    """Of training images computed like those of test images, they are those that were kept."""
    before, trained = load_trained(run, "erm", 0), load_trained(run, "masktune", 0)
    images = chosen_images(trained_task(run), ImageChoice("train", count=20))
    kept, seen = explanations.masks_of(run, trained, before.network, images, used=True)
    fresh, again = explanations.masks_of(run, trained, before.network, images, used=False)
    assert weights_fingerprint(seen) == weights_fingerprint(again) == trained.description["begun_from"]
    assert (kept.dropped != fresh.dropped).float().mean() < 2e-3 and kept.counts.sum() > 0  # rounding


def test_images_are_drawn_at_random():
    choice = ImageChoice(count=8)
    drawn = chosen_rows(choice, 100)
    assert drawn == chosen_rows(choice, 100) == sorted(set(drawn)) != chosen_rows(replace(choice, seed=1), 100)
    assert len(drawn) == 8 and drawn[-1] > 8 and chosen_rows(choice, 5) == list(range(5))


def test_images_under_a_shift(run):
    images = chosen_images(trained_task(run), ImageChoice(count=6, shift="malicious"))
    assert torch.equal(images.attributes["square"], images.attributes["label"])
    assert (images.images[images.attributes["square"] == 1][:, 2, 0, 0] == 255).all()


def test_other_algorithms_stand_beside_erm(run, tmp_path, monkeypatch, drawn):
    trained = SimpleNamespace(**vars(load_trained(run, "erm", 1)))
    draw("--run", run, "--algorithm", "erm", "--seed-of", 1, "--count", 2, "--shift", "raw", "--out", tmp_path / "erm.pdf")
    monkeypatch.setattr(explanations, "load_trained", lambda folder, name, *given: trained)
    draw("--run", run, "--algorithm", "vrex", "--count", 2, "--out", tmp_path / "vrex.png")
    headings = [[panel.heading for panel in made["panels"]] for made in drawn]
    assert headings == [["image", "ERM"], ["image", "ERM", ALGORITHMS["vrex"].title]]


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.out = nn.Conv2d(channels, 4, 5), nn.Linear(4, 1)

    def forward(self, images):
        return self.out(self.conv(images).relu().mean((2, 3))).squeeze(1)

def build(shape, classes):
    torch.manual_seed(0)
    return Net(shape[0])
"""


def test_a_classifier_of_the_users_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    given = ("--classifier", tmp_path / "mine.py:build", "--layer", "conv", "--count", 2, "--outputs", "logits")
    draw("--run", run, *given, "--out", tmp_path / "run.png")
    draw("--dataset", "spuriousmnist", *(f"--option={text}" for text in DATA.option), *given, "--out", tmp_path / "data.png")
    first, second = (matplotlib.image.imread(tmp_path / name) for name in ("run.png", "data.png"))
    assert (first == second).all()


@pytest.mark.parametrize("method", [m for m in ATTRIBUTIONS if m != "lime"])
def test_any_method(run, tmp_path, drawn, method):
    """MaskTune before and after, and one's own classifier, which needs a layer only where maps are read off one."""
    draw("--run", run, "--method", method, "--count", 2, "--out", tmp_path / "run.png")
    seen = drawn[0]
    before, after = seen["panels"][1], seen["panels"][3]
    assert not torch.equal(before.heat, after.heat) and before.heat.abs().max() <= 1 and (before.heat.min() < 0) == seen["signed"]
    assert ATTRIBUTIONS[method].title in seen["notes"][1] and seen["signed"] == ATTRIBUTIONS[method].signed
    (tmp_path / "mine.py").write_text(OWN)
    more = ("--outputs", "logits", "--out", tmp_path / "own.png", *(("--layer", "conv") if ATTRIBUTIONS[method].layered else ()))
    draw("--run", run, "--method", method, "--classifier", tmp_path / "mine.py:build", "--count", 2, *more)
    assert drawn[1]["panels"][1].heading == "mine" and drawn[1]["panels"][1].heat.abs().sum() > 0
    assert all(matplotlib.image.imread(tmp_path / name).std() > 0.05 for name in ("run.png", "own.png"))


MASKED = """
import torch
from datasets import CausalDataset, Variable

class Halves(CausalDataset):
    label, spurious = "kind", ("site",)
    variables = (Variable("kind", "binary"), Variable("site", "binary"),
                 Variable("image", "image", parents=("kind", "site"), shape=(1, 16, 16)))

    def load(self, split):
        kind, site = torch.arange(20) % 2, torch.arange(20) // 2 % 2
        return {"kind": kind, "site": site, "image": torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(0))}

    def masks(self, split):
        masks = torch.zeros(20, 16, 16, dtype=torch.bool)
        masks[:, :4] = True
        masks[1] = False
        return masks
"""


def test_the_foreground_is_outlined_and_its_share_told(tmp_path, drawn):
    """Row 1 has none. The network's gradient is the same everywhere, so that the share is that of the area."""
    (tmp_path / "halves.py").write_text(MASKED)
    (tmp_path / "flat.py").write_text("import torch\n\nclass Flat(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                                      "        self.w = torch.nn.Parameter(torch.ones(1))\n\n    def forward(self, x):\n"
                                      "        return self.w * (x.mean((1, 2, 3)) - 0.5)\n\ndef build():\n    return Flat()\n")
    draw("--dataset", tmp_path / "halves.py", "--classifier", tmp_path / "flat.py:build", "--method", "saliency", "--rows", "0,1,2",
         "--out", tmp_path / "x.png")
    image, heat = drawn[0]["panels"]
    assert [line[-1] for line in heat.lines][::2] == ["25 % inside"] * 2 and "inside" not in heat.lines[1][-1]
    assert torch.equal(image.foreground, heat.foreground) and image.foreground.flatten(1).sum(1).tolist() == [64, 0, 64]
    assert "it is 25 % of the images" in drawn[0]["notes"][-2] and "maps are of the predicted class" in drawn[0]["notes"][-1]
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0.05


@pytest.mark.parametrize("arguments, message", [
    ("--algorithm masktun", "erm masktune"),
    ("--algorithm jtt", "jtt seed 0 erm"),
    ("--seed-of 7", "masktune seed 7"),
    ("--algorithm erm --rule oracle --shift nowhere", "'nowhere' spuriousmnist"),
    ("--rows 3,24", "--rows 24 test 0..23"),
    ("--rows 3,x", "--rows '3,x'"),
    ("--count 0", "--count 0 1"),
    ("--layer nowhere", "'nowhere' SmallCNN"),
    ("--method gradcan", "gradcan --method"),
    ("--method lime --layer conv", "--method lime gradcam xgradcam"),
    ("--outputs logits", "--outputs logits --classifier"),
    ("--weights w.pt", "--weights --classifier"),
    ("--classifier mine.py:build", "--classifier --method xgradcam --layer NAME"),
    ("--classifier mine.pt2 --layer conv", "--classifier mine.pt2"),
    ("--dataset morphomnist-two --option a=b", "--run --dataset"),
    ("--out explain.xyz", ".xyz png"),
])
def test_bad_input(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        draw("--run", run, *arguments.split())
    assert stop.value.code == 2 and says(capsys.readouterr().err, message) and not list(tmp_path.iterdir())


def test_whose_classifier_without_a_name(run, tmp_path, drawn):
    """Of seed 1 there is no masktune."""
    draw("--run", run, "--seed-of", 1, "--method", "saliency", "--count", 1, "--out", tmp_path / "erm.png")
    assert drawn[0]["title"].startswith("ERM, seed 1: saliency, test images")


def test_a_run_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        draw("--run", "no where")
    told = capsys.readouterr().err
    assert says(told, "experiments.train --run 'no where' --algorithm")


def test_nothing_to_explain(capsys):
    with pytest.raises(SystemExit):
        draw("--count", 2)
    assert says(capsys.readouterr().err, "--run")


def test_a_masktune_whose_erm_is_another_one_now(run, monkeypatch):
    trained = load_trained(run, "masktune", 0)
    changed = {**trained.description, "base": "0"}
    other = Trained(trained.algorithm, 0, "last", trained.network, 1, changed)
    original = load_trained
    monkeypatch.setattr(explanations, "load_trained", lambda r, name, *rest: other if name == "masktune" else original(r, name, *rest))
    with pytest.raises(RunError, match=naming("erm")):
        explanations.explained(run, ImageChoice(), MaskTune)


def test_selective_refuses_a_masktune_of_another_erm(run, monkeypatch):
    """The ERM of another seed stands for one that was trained anew."""
    original = classifier.load_trained
    for module in (classifier, selective_room):
        monkeypatch.setattr(module, "load_trained", lambda r, name, n, *rest: original(r, name, 1 if name == "erm" else n, *rest))
    with pytest.raises(RunError, match=naming("masktune seed 0 erm")):
        selective_room.selective(run, "last", [1.0])


# ---------------------------------------------------------------------------------------------------- selective classification
def test_the_table_of_coverages(run, tmp_path, capsys):
    out = tmp_path / "selective.json"
    run_command(selective.Options, selective.main, ["--run", str(run), "--coverage", "0.5,1", "--out", str(out)])
    text, rows = capsys.readouterr().out, json.loads(out.read_text())["rows"]
    assert [(row["test"], row["wanted"]) for row in rows] == [(t, c) for t in ("observed", "raw", "malicious") for c in (0.5, 1.0)]
    assert all(row["answered"] == 1 for row in rows if row["wanted"] == 1)
    pair = [load_trained(run, name, 0) for name in ("erm", "masktune")]
    test = DATA.open().split("test").batch(slice(None))
    product = pair[0].predict(test["image"]).softmax(1) * pair[1].predict(test["image"]).softmax(1)
    assert rows[1]["accuracy"] == pytest.approx(float((product.argmax(1) == test["label"]).double().mean()))
    assert f"| observed    | 100      | 100.0      | {100 * rows[1]['accuracy']:.1f} " in text and "selected by: last" in text


@pytest.mark.parametrize("coverage, message", [("0.5,2", "--coverage 2"),
                                               ("most", "--coverage 'most'")])
def test_coverages_that_make_no_sense(run, coverage, message, capsys):
    with pytest.raises(SystemExit):
        run_command(selective.Options, selective.main, ["--run", str(run), "--coverage", coverage])
    assert says(capsys.readouterr().err, message)


def test_a_run_without_masktune(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command(selective.Options, selective.main, ["--run", str(tmp_path)])
    assert says(capsys.readouterr().err, "masktune experiments.train")
