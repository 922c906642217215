"""The pictures of docs/metrics.md: all drawn from a run, of foils that are what they claim, and linked where they are told of."""

from __future__ import annotations

import math
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.errors import UserError
from datasets.schema import SchemaError
from dscm import DSCM
from dscm.evaluation.config import EvaluationConfig
from dscm.jitter.run import calibrate_run
from dscm.metrics.truth import inner, psnr
from experiments import illustrate
from experiments.illustrations.options import Options
from experiments.illustrations.pictures import PICTURES
from experiments.illustrations.scene import BLUR, COPY, NEAREST, TRUE, Scene
from experiments.illustrations.sheet import Cell, Line, Sheet
from mechanisms.anticausal.model import FOLDER, PredictorConfig, Predictors, describe, load_predictors
from mechanisms.runs.files import save
from mechanisms.runs.folder import dataset_of
from tests.errors import naming

DOCS = Path(__file__).resolve().parents[3] / "docs"
SMALL = {"count": 16, "cycle_images": 2, "draws": 2, "draw_images": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, calibrated, with predictors that have learned nothing: of four features, for which 16 images are enough."""
    copy = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("illustrated") / "run"))
    torch.manual_seed(0)
    model = Predictors(dataset_of(copy).graph, PredictorConfig(width=4, blocks=1, features=4))
    save(copy / FOLDER / "mechanism.pt", {**describe(model), "weights": model.state_dict()})
    calibrate_run(copy, count=8, device="cpu")
    return copy


def scene_of(run: Path, predictors: Predictors | None) -> Scene:
    config = EvaluationConfig(**{name: SMALL[name] for name in ("cycle_images", "draws", "draw_images")})
    return Scene({"model": DSCM.load(run)}, dataset_of(run), predictors, run, config, count=SMALL["count"], shown=2)


@pytest.fixture(scope="module")
def scene(run: Path) -> Scene:
    return scene_of(run, load_predictors(run))


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, of its header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


def test_every_picture_is_linked_and_every_link_has_a_picture():
    linked = re.findall(r"!\[[^\]]+\]\(metrics/(\w+)\.png\)", (DOCS / "metrics.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(PICTURES)
    for name in linked:
        assert (DOCS / "metrics" / f"{name}.png").stat().st_size <= 150_000


def test_command_draws_all_of_them(run, tmp_path, capsys):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    illustrate.main(Options(run, other, tmp_path / "out", **SMALL))
    told = capsys.readouterr().out
    for name in PICTURES:
        assert f"wrote {tmp_path / 'out' / name}.png" in told
        assert min(size(tmp_path / "out" / f"{name}.png")) > 300
    assert "not drawn" not in told


def test_what_needs_predictors_is_named_without_them(tiny_run, tmp_path, capsys):
    illustrate.main(Options(tiny_run, out=tmp_path, only="truth, realism,minimality", **SMALL))
    told = capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["truth.png"]
    remedy = f"it needs the features of predictors; train them: python -m mechanisms.predictors --run {tiny_run}"
    assert all(f"not drawn: {name}: {remedy}" in told for name in ("realism", "minimality"))


@pytest.mark.parametrize(("given", "message"), [
    ({"only": "truth,beauty"}, "beauty truth"), ({"shown": 0}, "--shown 0 1"),
    ({"draws": 1}, "--draws 1 2"), ({"other": Path("runs/model")}, "--other runs/model")])
def test_bad_input_is_refused(given, message):
    with pytest.raises(UserError, match=naming(message)):
        illustrate.main(replace(Options(), **given))


# ------------------------------------------------------------------------------------------------ foils
def test_those_that_are_known_score_what_is_known_of_them(scene):
    copied, true = scene.truth_scores(COPY), scene.truth_scores(TRUE)
    assert true["truth_l1"].value == 0 and true["truth_ssim"].value == pytest.approx(1) and math.isinf(true["truth_psnr"].value)
    assert copied["truth_l1"].value == copied["truth_l1"].floors["identity"] > 0
    assert scene.change_scores(COPY)["minimality_misplaced"].value == 1 and scene.change_scores(TRUE)["minimality_misplaced"].value == 0
    assert scene.change_scores(COPY)["minimality_cld"].value == pytest.approx(math.log(0.8 + 0.2 * math.e))


def test_the_blurred_truth_has_the_psnr_of_the_run(scene):
    sharp, blurred, model = (inner(scene.image(name), scene.border) for name in (TRUE, BLUR, scene.first))
    assert psnr(blurred, sharp) == pytest.approx(psnr(model, sharp), abs=0.05)
    assert (blurred.diff().abs().mean() < sharp.diff().abs().mean()) and not torch.equal(blurred, sharp)


def test_others_are_the_nearest_training_images_of_other_digits(scene):
    training = scene.dataset.split("train")
    everyone = training.batch(slice(None))["image"]
    for k, image in enumerate(scene.image(NEAREST)):
        which = (everyone == image).flatten(1).all(1).nonzero().flatten()
        assert len(which) == 1 and training.attributes["digit"][which] != scene.truth["digit"][k]

        def far(row: int, k: int = k) -> float:
            return sum(float((training.attributes[name][row] - scene.truth[name][k]) / scene.dataset.graph[name].statistics.std) ** 2
                       for name in ("thickness", "intensity"))

        others = [row for row in range(len(training)) if training.attributes["digit"][row] != scene.truth["digit"][k]]
        assert far(int(which)) == pytest.approx(min(map(far, others)), rel=1e-4)


def test_shown_images_change_more_than_the_median(scene):
    change = (scene.truth["image"] - scene.observed["image"]).abs().flatten(1).mean(1)
    assert len(scene.shown) == 2 and (change[scene.shown] >= change.median()).all()
    assert scene.cycled < SMALL["cycle_images"]


def test_one_known_intervention_has_no_other_order(run):
    scene = scene_of(run, None)
    scene.others = []
    with pytest.raises(SchemaError, match=naming("morphomnist")):
        PICTURES["commutativity"](scene)


# ------------------------------------------------------------------------------------------------ sheets
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_images_differences_and_text(channels):
    image = torch.rand(channels, 8, 16, generator=torch.Generator().manual_seed(0))
    rows = [Line("first", [Cell(image, ("one", "two")), Cell(image - 0.5, ("three",), reach=0.5)]),
            Line("last", [Cell(), Cell(lines=("four",))])]
    figure = Sheet("title", ["left", "two\nlines"], rows).figure()
    words = [text.get_text() for text in figure.texts]
    assert {"title", "left", "two", "lines", "first", "last", "one", "three", "four"} <= set(words)
    assert len(figure.axes) == 2
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.width == pytest.approx(2 * box.height) and box.width % 16 == pytest.approx(0, abs=1e-6)
    x0, x1 = (axes.get_position() for axes in figure.axes)
    assert x0.x1 < x1.x0 and x1.x1 < 1 and x0.y0 > 0
