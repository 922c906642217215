"""Draws that vary as much as the image mechanism errs: the estimate, the jitter, the run folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datasets import Graph, Variable
from dscm import DSCM
from dscm.jitter.run import calibrate_run
from dscm.jitter.spread import FILE, Calibration, calibrate, effect_spread
from mechanisms.runs.files import RunError, save
from mechanisms.runs.folder import dataset_of
from tests.errors import naming

ROWS = 4000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def graph() -> Graph:
    names = (Variable("a", "real"), Variable("b", "interval", ("a",), low=0, high=10), Variable("c", "binary"))
    bare = Graph((*names, Variable("image", "image", ("a", "b", "c"), shape=(1, 4, 4))))
    g = generator()
    return bare.fitted({"a": 3 * torch.randn(500, generator=g), "b": 1 + 8 * torch.rand(500, generator=g),
                        "c": torch.randint(2, (500,), generator=g)})


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_spread_is_what_the_reading_does_not_explain(graph):
    asked, observed, error, own = torch.randn(4, ROWS, generator=generator())
    shown, read = asked + 0.7 * error, observed + 0.5 * own  # the reading is off by 0.5·own on both images
    assert effect_spread(graph["a"], asked, shown + 0.5 * own, observed, read) == pytest.approx(0.7, rel=0.05)
    assert effect_spread(graph["a"], asked, asked + 0.4 + 0.5 * own, observed, read) == pytest.approx(0.4 / 1.645, rel=1e-3)
    assert effect_spread(graph["a"], asked, asked + 0.5 * own, observed, read) == pytest.approx(0, abs=1e-6)
    wild = torch.where(torch.arange(ROWS) % 20 == 0, 50.0, 0.7 * error)  # one in twenty
    assert effect_spread(graph["a"], asked, asked + wild, observed, observed) == pytest.approx(0.7 * 1.937 / 1.645, rel=0.05)
    assert effect_spread(graph["c"], asked, shown, observed, read) == 0


def test_calibrate_finds_the_error_of_a_model_whose_error_is_known(graph):
    g = generator()
    observed = {"a": torch.randn(ROWS, generator=g), "b": 5 + torch.zeros(ROWS)}
    image = torch.zeros(ROWS, 1, 4, 4)
    image[:, 0, 0, 0], image[:, 0, 0, 1] = observed["a"], observed["b"]

    def counterfactual(world, do):
        answer = {**world, **do, "image": image.clone()}
        answer["image"][:, 0, 0, 0] = answer["a"] + 0.3 * torch.randn(ROWS, generator=g)
        answer["image"][:, 0, 0, 1] = answer["b"] + (0.6 if "b" in do else 0.0) * torch.randn(ROWS, generator=g)
        return answer

    spread = calibrate(counterfactual, graph, {**observed, "image": image}, {"a": observed["a"] + 1, "b": observed["b"] - 1},
                       lambda images: {"a": images[:, 0, 0, 0], "b": images[:, 0, 0, 1]})
    assert spread["a"] == {"a": pytest.approx(0.3, rel=0.05), "b": pytest.approx(0, abs=1e-6)}
    assert spread["b"] == {"a": pytest.approx(0.3, rel=0.05), "b": pytest.approx(0.6, rel=0.05)}


def test_jitter_has_the_spread_of_all_that_was_intervened_on(graph):
    calibration = Calibration({"a": {"a": 0.3, "b": 0.0}, "b": {"a": 0.4, "c": 5.0}})
    values = {"a": torch.zeros(3, ROWS), "b": torch.full((3, ROWS), 5.0), "c": torch.ones(3, ROWS, dtype=torch.long)}
    for names, s in ((["a"], 0.3), (["b"], 0.4), (["a", "b"], 0.5)):
        moved = calibration.jitter(graph, names, values, generator())
        assert float(moved["a"].std()) == pytest.approx(s, rel=0.03) and abs(float(moved["a"].mean())) < 0.02
        assert torch.equal(moved["b"], values["b"]) and torch.equal(moved["c"], values["c"])
        assert torch.equal(moved["a"], calibration.jitter(graph, names, values, generator())["a"])
    assert torch.equal(calibration.jitter(graph, ["c"], values, generator())["a"], values["a"])


def test_jitter_stays_in_what_training_has_shown(graph):
    calibration = Calibration({"b": {"b": 50.0}})
    inside, beyond = torch.full((ROWS,), 5.0), torch.full((ROWS,), 9.5)
    seen = graph["b"].statistics
    moved = calibration.jitter(graph, ["b"], {"a": inside, "b": inside, "c": inside.long()}, generator())["b"]
    assert float(moved.min()) == pytest.approx(seen.minimum) and float(moved.max()) == pytest.approx(seen.maximum)
    assert float(calibration.jitter(graph, ["b"], {"a": inside, "b": beyond, "c": inside.long()}, generator())["b"].max()) == 9.5


def test_a_calibrated_run_draws_more_widely_and_answers_the_same(copy):
    narrow = DSCM.load(copy)
    calibration = calibrate_run(copy, count=24)
    assert set(calibration.spread) == {"thickness", "intensity", "digit"} and calibration.spread["thickness"]["thickness"] > 0
    wide = DSCM.load(copy)
    assert wide.calibration.spread == calibration.spread and wide.calibration.about["readings"] == "measured"
    observed = dataset_of(copy).split("test").batch(range(6))
    answers = [model.counterfactual(observed, {"thickness": 3.5}, draws, generator=generator()) for model in (narrow, wide)
               for draws in (None, 64)]
    assert torch.equal(answers[0].image, answers[2].image)
    assert float(answers[3].spread.mean()) > float(answers[1].spread.mean())
    assert all(torch.equal(draw, observed["image"]) for draw in wide.counterfactual(observed, {}, draws=2).draws)


def test_a_mechanism_trained_since_is_not_calibrated(copy):
    calibrate_run(copy, count=8)
    path = copy / "image" / "mechanism.pt"
    state = torch.load(path, weights_only=True)
    save(path, {**state, "step": state["step"] + 1})
    with pytest.warns(UserWarning, match=naming(copy / FILE, "dscm.calibrate --run")):
        assert DSCM.load(copy).calibration is None


def test_a_foreign_file_is_refused(copy):
    (copy / FILE).write_text("[1, 2]")
    with pytest.raises(RunError, match=naming(copy / FILE, "list dscm.calibrate")):
        DSCM.load(copy)


@pytest.mark.parametrize("change, named", [
    ({"spread": None}, "spread NoneType"), ({"spread": {"thickness": 3}}, "spread thickness"),
    ({"spread": {"thickness": {"thickness": "wide"}}}, "spread thickness"), ({"about": []}, "about list"),
    ({"spread": {"thickness": {"thickness": float("nan")}}}, "spread thickness"), ({"format": "1"}, "format str"),
    ({"kind": "evaluation"}, "1")])
def test_a_damaged_calibration_is_refused(copy, change, named):
    calibrate_run(copy, count=8)
    (copy / FILE).write_text(json.dumps({**json.loads((copy / FILE).read_text()), **change}))
    with pytest.raises(RunError, match=naming(copy / FILE, named, "dscm.calibrate")):
        DSCM.load(copy)


def test_command(copy):
    command = [sys.executable, "-m", "dscm.calibrate", "--run", str(copy), "--count", "8", "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "do(intensity): thickness" in result.stdout and (copy / FILE).exists()
