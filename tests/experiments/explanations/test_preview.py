"""The command ``experiments.preview``: what it draws, leaves out, and refuses."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.options import DataOptions
from dscm.figures.style import ORANGE
from experiments import preview
from experiments.augmenters.registry import COUNTERFACTUAL, FACTUAL, augmenter
from experiments.explanations import preview as room
from experiments.explanations.figure import EDGE
from experiments.explanations.options import ImageChoice
from experiments.explanations.preview import AugmentedBatch, open_batch, preview_figure
from experiments.explanations.preview_options import Options
from experiments.train import main as train
from experiments.training.options import Options as TrainOptions
from experiments.training.options import TrainingFlags
from mechanisms.image.config import ImageConfig
from mechanisms.image.fit import train_image
from mechanisms.image.options import DEFAULTS
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError
from mechanisms.training.config import RunOptions
from pgm import options as attributes
from pgm.fit import train_attributes
from tests.errors import naming, says

PROGRAM = '''
    """White bars and squares on grounds of two hues, which go with the shape; 16×16 pixels."""

    from dataclasses import dataclass

    import torch

    from datasets import CausalDataset, Variable

    H, W = 16, 16

    @dataclass
    class Bars(CausalDataset):
        variables = (Variable("shape", "binary", classes=("bar", "square")),
                     Variable("ground", "binary", parents=("shape",), classes=("red", "blue")),
                     Variable("image", "image", parents=("shape", "ground"), shape=(3, H, W)))
        label, spurious = "shape", ("ground",)
        true_images_under = ("shape", "ground")
        known: str = "train,valid,test"
        lazy: bool = False
        direct: bool = True  # whether the image's shape is said to be caused by the label

        def __post_init__(self):
            if not self.direct:
                self.variables = (*type(self).variables[:2], Variable("image", "image", parents=("ground",), shape=(3, H, W)))

        def load(self, split):
            return self.world(self.noise(split), {})

        def true_counterfactual(self, split, index, do):
            return self.world({k: u[index] for k, u in self.noise(split).items()}, do)

        def masks(self, split):
            masks = self.covered(self.load(split)["shape"])
            masks[0] = False  # of the first it is not known
            return None if split not in self.known else list(masks) if self.lazy else masks

        def noise(self, split):
            generator = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
            return {k: torch.rand(40, generator=generator) for k in ("shape", "ground")}

        def covered(self, shape):
            masks = torch.zeros(len(shape), H, W, dtype=torch.bool)
            masks[:, 2:6, 3:7] = True
            masks[shape == 0, 2:10, 3:5] = True
            masks[shape == 0, :, 5:] = False
            return masks

        def world(self, u, do):
            shape = do.get("shape", (u["shape"] > 0.5).long())
            ground = do.get("ground", torch.where(u["ground"] < 0.9, shape, 1 - shape))
            hue = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.2, 0.8]])[ground]
            image = torch.where(self.covered(shape)[:, None], 1.0, hue[:, :, None, None] * torch.linspace(0.5, 1, W))
            return {"shape": shape, "ground": ground, "image": image}
'''
FLAGS = TrainingFlags(epochs=1, batch_size=20, hidden=8, validations=1, validation_rows=16, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "bars.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


@pytest.fixture(scope="module")
def run(bars, tmp_path_factory):
    """A run with erm, which is to be misled."""
    folder, data = tmp_path_factory.mktemp("runs") / "run", DataOptions(str(bars))
    train(TrainOptions(data, RunOptions(folder), "erm", training=FLAGS))
    return folder


def draw(*arguments):
    run_command(Options, preview.main, [*map(str, arguments), "--device", "cpu"])


def batch_of(source, count=6, rows="", seed=0, **given) -> AugmentedBatch:
    source = source if isinstance(source, DataOptions) or source.is_dir() else DataOptions(str(source))
    return open_batch(source, ImageChoice("train", rows, count, seed), device="cpu", **given)


def figure_of(source, cf="all", factual="all", **given):
    return preview_figure(batch_of(source, **given), {"counterfactual": cf, "factual": factual})


def words(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def headings(figure):
    return [text for text in words(figure) if text.startswith("--")]


# ---------------------------------------------------------------------------------------------------- what is drawn
def test_command_writes_a_picture(bars, tmp_path, capsys):
    draw("--dataset", bars, "--cf", "tile,mean", "--factual", "shuffle", "--count", 3, "--out", tmp_path / "p.png")
    assert matplotlib.image.imread(tmp_path / "p.png").std() > 0.05
    assert f"wrote {tmp_path / 'p.png'}" in capsys.readouterr().out


def test_columns_are_those_that_are_asked_for_in_this_order(bars):
    figure = figure_of(bars, cf="tile,mean", factual="mrand,shuffle", count=4)
    assert headings(figure) == ["--cf tile", "--cf mean", "--factual mrand", "--factual shuffle"]
    assert len(figure.axes[0].images) == 4 * (2 + 4) and {"image", "mask"} <= set(words(figure))
    assert headings(figure_of(bars, cf="none", factual="none")) == []


def test_labels_follow(bars):
    batch = batch_of(bars, count=5)
    (fill,), (background,) = (batch.wanted(kind, "shuffle")[0] for kind in ("counterfactual", "factual"))
    classes = [("bar", "square")[int(label)] for label in batch.labels[:5]]
    assert [line[0] for line in batch.panel(fill).lines] == [f"not {name}" for name in classes]
    assert [line[0] for line in batch.panel(background).lines] == classes


def test_an_image_without_foreground_is_marked(bars):
    batch = batch_of(bars, count=40)
    row = batch.rows.tolist().index(0)
    image, mask = batch.given()
    assert mask.lines[row] == ["no foreground"] and not mask.outline[row].any()
    panel = batch.panel(batch.wanted("counterfactual", "mean")[0][0])
    assert panel.lines[row][1:] == ["as it is"] and sum(len(line) == 2 for line in panel.lines) == 1
    assert torch.equal(panel.images[row], image.images[row])


def test_the_mask_is_outlined(bars):
    figure = figure_of(bars, cf="none", factual="none", count=2)
    assert [matplotlib.colors.to_hex(c.get_edgecolor()[0]) for c in figure.axes[0].collections] == [EDGE, ORANGE] * 2
    assert any("blue: its bounding rectangle, which --cf fills" in text for text in words(figure))


def test_the_rectangle_that_is_filled_is_outlined(bars):
    batch = batch_of(bars)
    box, filled = batch.given()[1].foreground, batch.panel(batch.wanted("counterfactual", "mean")[0][0]).images
    assert torch.equal((filled != batch.batch["image"][:6]).any(1), box & (batch.batch["image"][:6] != 0.5).any(1))


def test_no_more_images_than_there_are(bars):
    batch = batch_of(bars, count=50)
    assert batch.count == 40 and sorted(batch.rows.tolist()) == list(range(40)) and len(batch.given()[0].images) == 40


def test_rows_may_be_named(bars):
    batch, rows = batch_of(bars, rows="7,3"), DataOptions(str(bars)).open().split("train")
    assert batch.rows[:2].tolist() == [7, 3] and sorted(batch.rows.tolist()) == list(range(40))
    assert torch.equal(batch.given()[0].images, rows.batch([7, 3])["image"]) and len(batch.given()[1].lines) == 2


def test_headings_say_what_replaces_what(bars):
    told = words(figure_of(bars, cf="mean,tile", factual="shuffle", count=1))
    assert {"rectangle: grey", "rectangle: strip tiled", "background: pixels shuffled"} <= set(told)
    assert [room.replacement(augmenter("factual", name)) for name in ("fgsm", "dscm")] == [
        "background: attack (FGSM)", "whole image: causal model"]


def test_a_rectangle_without_a_strip_is_said(bars):
    batch = batch_of(bars, count=2)
    batch.batch["mask"][0] = True
    lines = batch.panel(batch.wanted("counterfactual", "tile")[0][0]).lines
    assert lines[0][-1] == "no strip: grey" and len(lines[1]) == 1


def test_seeds_draw_images_and_repeat(bars):
    rows, again, others = (batch_of(bars, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(rows.rows, again.rows) and not torch.equal(rows.rows, others.rows)
    made = [batch.panel(batch.wanted("factual", "random")[0][0]).images for batch in (rows, again)]
    assert torch.equal(*made)


def test_masks_may_be_lazy(bars):
    eager, lazy = (batch_of(DataOptions(str(bars), option=(f"lazy={lazy}",))) for lazy in ("false", "true"))
    assert torch.equal(eager.batch["mask"], lazy.batch["mask"])


# ---------------------------------------------------------------------------------------------------- what is needed
def test_all_leaves_out_what_lacks_something_and_says_so(bars):
    figure = figure_of(bars)
    assert headings(figure) == ["--cf mean", "--cf random", "--cf shuffle", "--cf tile", "--factual random", "--factual shuffle",
                                "--factual mrand"]
    told = " ".join(words(figure))
    for name, flag in (("folder", "--ready DIR"), ("dscm", "--model RUN, or --truth"), ("fgsm", "--run RUN"), ("pgd", "--run RUN")):
        assert f"all: {name}, which needs" in told and flag in told


@pytest.mark.parametrize(("flag", "name", "told"), [
    ("--cf", "folder", "--ready DIR"), ("--cf", "dscm", "--model RUN --truth"), ("--factual", "fgsm", "--run RUN"),
    ("--factual", "pgd", "--run RUN"), ("--factual", "dscm", "--model RUN --truth"),
])
def test_what_is_named_is_not_left_out_silently(bars, capsys, flag, name, told):
    with pytest.raises(SystemExit):
        draw("--dataset", bars, flag, f"random,{name}")
    assert says(error := capsys.readouterr().err, f"{flag} {name}") and says(error, told)


def test_everything_there_is(bars, run, tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for row in range(40):
        Image.fromarray(np.full((16, 16, 3), 7, dtype=np.uint8)).save(folder / f"{row}.png")
    given = {"ready": tmp_path, "truth": True, "count": 3}
    figure = figure_of(run, **given)
    assert headings(figure) == [f"--cf {name}" for name in COUNTERFACTUAL] + [f"--factual {name}" for name in FACTUAL]
    assert not [text for text in words(figure) if text.startswith("left out")]
    batch = batch_of(run, **given)
    pasted = batch.panel(batch.wanted("counterfactual", "folder")[0][0]).images
    assert ((pasted == 7 / 255).all(1).any(2).any(1) == batch.batch["mask"][:3].any(2).any(1)).all()


def test_the_model_sets_the_label_or_what_is_spurious(bars):
    """A counterfactual is of the other shape; a factual image is of the same shape, on either ground."""
    batch = batch_of(bars, truth=True, count=12)
    white = (batch.batch["image"][:12] == 1).all(1)
    other, same = (batch.panel(batch.wanted(kind, "dscm")[0][0]).images for kind in ("counterfactual", "factual"))
    assert ((other == 1).all(1) != white).flatten(1).any(1).all()
    assert torch.equal((same == 1).all(1), white) and not torch.equal(same, batch.batch["image"][:12])


def test_a_trained_model_makes_the_images_of_dscm(bars, tmp_path):
    data, run = DataOptions(str(bars)), RunOptions(tmp_path / "model")
    train_attributes(data.open(), data, run, replace(attributes.DEFAULTS, steps=20, device="cpu"))
    small = ImageConfig(z_dim=4, embedding=8, widths="8:8,4:8,1:8")
    training = replace(DEFAULTS, steps=4, batch_size=8, device="cpu", precision="fp32")
    train_image(data.open(), data, run, training, config=small)
    figure = figure_of(bars, model=tmp_path / "model", cf="dscm", factual="dscm", count=2)
    assert headings(figure) == ["--cf dscm", "--factual dscm"] and "as it is" not in words(figure)
    with pytest.raises(RunError, match=naming("--model", tmp_path / "model")):
        figure_of(DataOptions(str(bars), option=("direct=false",)), model=tmp_path / "model")


def test_a_label_that_does_not_cause_the_image_is_none_to_set(bars):
    batch = batch_of(DataOptions(str(bars), option=("direct=false",)), truth=True)
    with pytest.raises(RunError, match=naming("--cf dscm")):
        batch.wanted("counterfactual", "dscm")
    assert [made.name for made in batch.wanted("factual", "dscm")[0]] == ["dscm"]


# ---------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(("arguments", "told"), [
    (["--cf", "tiles"], "'tiles' mean"),
    (["--factual", "all,random"], "'all' random"),
    (["--rows", "3,40"], "--rows 40 train 0..39"), (["--count", "0"], "--count 0 1"),
    (["--rows", "3-7"], "--rows '3-7'"),
    (["--option", "known=valid"], "masks(split)"), (["--option", "known=train", "--split", "test"], "test --split"),
    (["--run", "nowhere"], "--run nowhere --dataset"), (["--truth", "--model", "nowhere"], "--truth --model"),
    (["--model", "nowhere", "--cf", "dscm"], "nowhere"), (["--out", "preview.doc"], "preview.doc"),
    (["--ready", "nowhere", "--cf", "folder"], "nowhere/train"), (["--label", "size"], "'size'"),
])
def test_what_cannot_be_drawn_is_said(bars, capsys, monkeypatch, tmp_path, arguments, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        draw("--dataset", bars, *arguments)
    assert says(capsys.readouterr().err, told) and not list(tmp_path.glob("*.png"))


def test_a_run_says_what_is_classified(run, capsys):
    for arguments, told in ((["--label", "ground"], "--label ground"), (["--algorithm", "irm"], "irm")):
        with pytest.raises(SystemExit):
            draw("--run", run, *arguments)
        assert says(capsys.readouterr().err, told)
