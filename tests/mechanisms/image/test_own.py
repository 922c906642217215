"""A user's own image mechanism, from a file: docs/my_mechanism.py through every command that takes a run, and files that do not work."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.errors import UserError
from datasets.options import DataOptions
from dscm.model import DSCM
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.anticausal.fit import train_predictors
from mechanisms.anticausal.options import DEFAULTS as PREDICTOR_TRAINING
from mechanisms.image.config import ImageConfig
from mechanisms.image.fit import train_image
from mechanisms.image.options import DEFAULTS, Options
from mechanisms.image.registry import build, describe, load_image_mechanism
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError
from mechanisms.train import main
from mechanisms.training.config import RunOptions
from pgm import options as pgm_options
from pgm.fit import train_attributes

ROOT = Path(__file__).resolve().parents[3]
MINE = f"{ROOT / 'docs' / 'my_mechanism.py'}:Pixelwise"
DATA = DataOptions(str(ROOT / "docs" / "my_scm.py"), option=("size=120",))
QUICK = {"steps": 4, "batch_size": 16, "validations": 1, "device": "cpu", "precision": "fp32"}
HEAD = textwrap.dedent((ROOT / "docs" / "my_mechanism.py").read_text())


@pytest.fixture(scope="module")
def dataset():
    return DATA.open()


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run with attributes, predictors and the image mechanism of the file, trained for a few updates."""
    run = RunOptions(tmp_path_factory.mktemp("own") / "run")
    train_attributes(dataset, DATA, run, replace(pgm_options.DEFAULTS, **QUICK))
    train_predictors(dataset, DATA, run, replace(PREDICTOR_TRAINING, **QUICK), PredictorConfig(width=4, blocks=1, features=4), 1, 0)
    train_image(dataset, DATA, run, replace(DEFAULTS, **QUICK), MINE, settings={"width": "16"})
    return run.run


def command(module: str, *arguments: object) -> None:
    door = __import__(module, fromlist=["main"])
    run_command(door.Options, door.main, [str(part) for part in arguments])


# ---------------------------------------------------------------------------------------------------- the run remembers
def test_the_run_remembers_file_and_settings(run, dataset):
    model = DSCM.load(run)
    assert model.image.config.width == 16 and model.image.origin.function == "Pixelwise" and not model.image.training
    again = load_image_mechanism(run / "image" / "mechanism.pt")
    assert describe(again) == describe(model.image)
    assert describe(again)["file"] == str(ROOT / "docs" / "my_mechanism.py") and describe(again)["config"] == {"width": 16}
    rows = dataset.split("test").batch(range(6))
    answer = model.counterfactual(rows, {"radius": 3.0})
    assert answer.image.shape == rows["image"].shape and torch.isfinite(answer.image).all()
    torch.testing.assert_close(model.counterfactual(rows, {}).image, rows["image"], rtol=0, atol=1e-5)


def test_training_goes_on_where_it_stopped(run, dataset, tmp_path):
    where, training = tmp_path / "run", replace(DEFAULTS, **{**QUICK, "schedule": "constant"})
    train_image(dataset, DATA, RunOptions(where), training, MINE, settings={"width": 16})
    resumed = train_image(dataset, DATA, RunOptions(where, resume=True), replace(training, steps=8), MINE, settings={"width": "16"})
    whole = train_image(dataset, DATA, RunOptions(tmp_path / "whole"), replace(training, steps=8), MINE, settings={"width": 16})
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    with pytest.raises(RunError, match="its config differ"):
        train_image(dataset, DATA, RunOptions(where, resume=True), training, MINE, settings={"width": 8})


def test_every_command_that_takes_a_run(run, tmp_path, capsys):
    command("dscm.counterfactual", "--run", run, "--do", "radius=2,4", "--count", 2, "--out", tmp_path / "grid.png", "--device", "cpu")
    command("dscm.calibrate", "--run", run, "--count", 16, "--device", "cpu")
    command("dscm.evaluate", "--run", run, "--count", 8, "--draws", 2, "--out", tmp_path / "metrics.json", "--device", "cpu")
    command("dscm.export", "--run", run, "--do", "radius=3", "--out", tmp_path / "images", "--device", "cpu")
    command("dscm.finetune", "--run", run, "--into", tmp_path / "tuned", "--steps", 2, "--batch-size", 16, "--count", 4, "--device", "cpu")
    assert (tmp_path / "grid.png").exists() and (run / "calibration.json").exists() and list((tmp_path / "images").iterdir())
    scores = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    assert {"truth_l1", "composition_l1"} <= {score["metric"] for score in scores}
    tuned = DSCM.load(tmp_path / "tuned").image
    assert tuned.origin.function == "Pixelwise" and tuned.config.width == 16


def test_a_file_that_is_gone_or_has_changed(dataset, tmp_path):
    path, run = tmp_path / "mine.py", RunOptions(tmp_path / "run")
    path.write_text(HEAD)
    train_image(dataset, DATA, run, replace(DEFAULTS, **{**QUICK, "steps": 1}), f"{path}:Pixelwise")
    path.write_text(HEAD.replace("hidden), nn.SiLU()", "hidden + 1), nn.SiLU()").replace("nn.Linear(hidden, outputs)",
                                                                                       "nn.Linear(hidden + 1, outputs)"))
    with pytest.raises(RunError, match=rf"weights do not fit .*If {path} has changed since the training, undo that, or train anew"):
        load_image_mechanism(run.run / "image" / "mechanism.pt")
    path.unlink()
    with pytest.raises(RunError, match=f"was built by Pixelwise of {path}, which is gone; put that file back"):
        load_image_mechanism(run.run / "image" / "mechanism.pt")


# ---------------------------------------------------------------------------------------------------- functions and settings
def test_a_function_has_its_parameters_as_settings(dataset, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + textwrap.dedent("""
        def build(graph, width: int = 8, plain=False):
            return Pixelwise(graph, Settings(width if not plain else 1))

        def anything(graph, **settings):
            return Pixelwise(graph, Settings(int(settings.pop("width"))))
    """))
    model = build(f"{path}:build", dataset.graph, settings={"width": "5", "plain": "true"})
    assert model.config.width == 1 and describe(model)["config"] == {"width": 5, "plain": True}
    assert build(f"{path}:anything", dataset.graph, settings={"width": "6"}).config.width == 6
    for settings, told in (({"widths": "3"}, r"has no setting 'widths'; valid are width, plain \(did you mean width\?\)"),
                           ({"width": "wide"}, "--set width=wide: 'wide' is no whole number")):
        with pytest.raises(UserError, match=told):
            build(f"{path}:build", dataset.graph, settings=settings)


def test_settings_of_registered_mechanisms(dataset):
    assert build("vae", dataset.graph, settings={"z_dim": "3", "prior": "mediator"}).config == ImageConfig(z_dim=3, prior="mediator")
    for settings, told in (({"zdim": "3"}, r"'vae' has no setting 'zdim'; .*\(did you mean z_dim\?\)"),
                           ({"z_dim": "0"}, "--set z_dim=0 must lie in"), ({"prior": "flat"}, "'flat' is unknown; valid are exogenous")):
        with pytest.raises(UserError, match=told):
            build("vae", dataset.graph, settings=settings)


@pytest.mark.parametrize(("arguments", "told"), [
    (["--z-dim", "3", "--bases", "1"], "--z-dim, --bases: not of the image mechanism .*; its own settings are given by --set KEY=VALUE"),
    (["--preset", "cpu"], "--preset: not of the image mechanism"), (["--set", "width"], "--set 'width' is not KEY=VALUE"),
    (["--set", "width=3", "--set", "width=4"], "--set width is given twice"),
    (["--mechanism", "hvae", "--z-dim", "3", "--set", "z-dim=4"], "--z-dim and --set z_dim=4 say the same"),
    (["--mechanism", "hvae", "--preset", "cpu", "--set", "patch=4"], "--preset cpu and --set patch=4 say the same"),
    (["--mechanism", "gan"], "unknown image mechanism 'gan'; valid are hvae, vae.*or your own file: FILE.py:build"),
    (["--mechanism", "nowhere.py:build"], "mechanism file nowhere.py does not exist"),
    (["--mechanism", "nowhere.py"], "name the function or class that makes the mechanism: nowhere.py:build"),
])
def test_the_command_refuses(tmp_path, capsys, arguments, told):
    import re

    given = ["--mechanism", MINE] if "--mechanism" not in arguments else []
    with pytest.raises(SystemExit) as stopped:
        run_command(Options, main, ["--dataset", DATA.dataset, "--option", "size=120", "--run", str(tmp_path / "run"), "--steps", "1",
                                    *given, *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and re.search(told, error) and error.count("\n") == 1 and not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- files that do not work
@pytest.mark.parametrize(("before", "after", "told"), [
    ("class Pixelwise", "class Other", r"has no function 'Pixelwise'; it has .*Other"),
    ("from torch import nn", "import no_such_module_of_mine", r"mine.py, line \d+ .*it cannot be run: ModuleNotFoundError"),
    ("super().__init__(graph, config)", "pass", r"mine.py, line \d+ .*Pixelwise fails: "),
    ("def predict(", "def foretell(", r"Pixelwise fails: TypeError: Can't instantiate abstract class Pixelwise"),
    ("class Pixelwise(ImageMechanism)", "class Pixelwise(nn.Module)", "Pixelwise fails"),
    ("-self.normal(batch", "float('nan') - self.normal(batch", r"forward\(batch, noise, progress\)\['loss'\] is not finite"),
    ('"free_energy": energy', '"other": energy', "and no 'free_energy'; add it, or say bounded = False"),
    ('{"loss": energy, "free_energy": energy}', "energy", "forward.* returns a Tensor; expected terms by name"),
    (".sum((1, 2, 3))", ".sum()", r"\['loss'\] has shape \(\); expected \(2,\)"),
    ('"loss": energy,', '"loss": energy.detach(),', "has no gradient, so that nothing would be learned"),
    ("temperature * normal.scale * noise.u)", "normal.scale)", r"predict\(abduct\(x, pa\), pa\) is not x, but up to"),
    (".clamp(0, 1)", ".clamp(0, 1)[:, 0]", r"predict\(noise, parents\) has shape \(2, 16, 16\); expected \(2, 1, 16, 16\)"),
    (".clamp(0, 1)", ".log()", "predict.* is not finite|is not x"),
    (".clamp(0, 1)", "", r"predict.* has pixels from .*; images lie in \[0, 1\]: clamp them"),
    (".repeat(draws, 1, 1, 1)", "", r"abduct\(images, parents, draw, draws=2\) has 2 rows; expected 4"),
    ("return Residual(draw(rows", "return (draw(rows", r"draw_noise\(2, draw\) returns a Tensor; expected a .*ImageNoise"),
    ("return Residual(self.u[index])", "return self", r"rows\(index\) or cat\(noises\) of its noise has 2 rows; expected 1"),
    ("self.normal(parents, len(images))", "self.norm(parents, len(images))",
     r"mine.py, line \d+ \(`.*self.norm.*\): abduct\(images, parents\) fails: AttributeError"),
])
def test_what_does_not_work_is_said_in_one_line(dataset, tmp_path, before, after, told):
    assert before in HEAD
    path = tmp_path / "mine.py"
    path.write_text(HEAD.replace(before, after))
    with pytest.raises(RunError, match=told) as caught:
        build(f"{path}:Pixelwise", dataset.graph)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_the_trial_leaves_no_trace(dataset):
    torch.manual_seed(3)
    model = build(MINE, dataset.graph)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    kind = type(model)
    plain = kind(dataset.graph, kind.settings())
    assert torch.equal(drawn, torch.rand(1)) and model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
