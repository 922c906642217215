"""The command that evaluates a run: what it writes, what it shares, and what it refuses before it overwrites anything."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.schema import SchemaError
from dscm.evaluate import Options, main
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation
from dscm.evaluation.questions import Questions, draw_questions
from dscm.runs import open_run
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, save
from mechanisms.runs.folder import dataset_of
from tests.errors import naming


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def options(run: Path, **given) -> Options:
    config = EvaluationConfig(draws=4, draw_images=4, cycle_images=4, cycles=(1,), steps=(2,), parts=given.pop("parts", ()))
    return Options(run, device="cpu", config=config, **given)


def test_command_end_to_end_with_predictors(run, capsys):
    from datasets.options import DataOptions
    from mechanisms.anticausal.fit import train_predictors
    from mechanisms.anticausal.options import DEFAULTS
    from mechanisms.training.config import RunOptions

    dataset = dataset_of(run)
    training = replace(DEFAULTS, steps=2, validations=1, device="cpu", precision="fp32")
    train_predictors(dataset, DataOptions(), RunOptions(run), training, renderings=1)
    capsys.readouterr()
    main(options(run))
    said = capsys.readouterr().out
    state = json.loads((run / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert set(state) == {"format", "kind", "run", "model", "dataset", "split", "count", "seed", "interventions", "settings", "versions",
                          "seconds", "scores", "missing"}
    assert (state["kind"], state["split"], state["count"], state["seed"]) == ("evaluation", "test", 32, 0)
    evaluation = Evaluation.load(run / "metrics.json")
    assert evaluation.find("effectiveness_accuracy", "do(digit)", "digit")
    assert "at least 128 images" in evaluation.missing["realism_frechet"]
    for expected in ("## do(thickness)", "error to the true image", "copying x", "## Not computed", "metrics.json", "interventions.json"):
        assert expected in said
    assert said.index("error to the true image") < said.index("thickness measured")
    for name in ("floors", "cycles", "calibration"):
        assert (run / f"metrics_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(run.glob(".*.tmp"))


def test_command_without_predictors_names_the_remedy_and_repeats(run, tmp_path, capsys):
    out = tmp_path / "new" / "m.json"
    main(options(run, out=out, count=8, parts=("truth", "realism")))
    assert f"python -m mechanisms.predictors --run {run}" in capsys.readouterr().out
    first = Evaluation.load(out)
    main(options(run, out=out, count=8, parts=("truth", "realism")))
    assert Evaluation.load(out).scores == first.scores and "as in" in capsys.readouterr().out
    kept = (out.parent / "interventions.json").read_bytes()
    main(options(run, out=out, count=8, seed=1, parts=("truth",)))
    assert "not saved, since there are others" in capsys.readouterr().out and (out.parent / "interventions.json").read_bytes() == kept


def test_interventions_are_shared_through_a_file(run, tmp_path, capsys):
    file, both = tmp_path / "shared.json", []
    for name in ("a", "b"):
        main(options(run, out=tmp_path / name / "m.json", interventions=file, parts=("truth",), **({"seed": 3} if name == "a" else {})))
        both.append(Evaluation.load(tmp_path / name / "m.json"))
    assert both[0].scores == both[1].scores and both[1].about["seed"] == 3
    assert "drawn and written" in capsys.readouterr().out and not (tmp_path / "a" / "interventions.json").exists()
    main(options(run, out=tmp_path / "c.json", interventions=file, count=6, parts=("truth",)))
    assert Evaluation.load(tmp_path / "c.json").about["count"] == 6
    dataset = dataset_of(run)
    draw_questions(dataset, "valid", 8).save(tmp_path / "valid.json")
    for given, said in (({"seed": 4}, "--seed 3 4"), ({"count": 33}, "--count 33 32 2..32"),
                        ({"split": "valid"}, "shared.json test valid --split"),
                        ({"interventions": tmp_path / "valid.json", "split": "test"}, "valid.json valid test --split")):
        with pytest.raises(RunError, match=naming(said)):
            main(options(run, out=tmp_path / "d.json", **{"interventions": file, **given}))
        assert not (tmp_path / "d.json").exists()
    assert Questions.load(file, dataset).seed == 3


def test_bad_runs_and_places_are_refused_and_nothing_is_overwritten(run, tmp_path):
    kept = run / "metrics.json"
    kept.write_text("mine")
    for given, error, said in (({"out": tmp_path}, RunError, tmp_path), ({"out": kept / "x.json"}, RunError, "metrics.json --out"),
                               ({"count": 33}, SchemaError, "2..32"), ({"run": tmp_path / "none"}, RunError, tmp_path / "none")):
        with pytest.raises(error, match=naming(said)):
            main(replace(options(run), **given))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "options": {**record["options"], "train_digits": "48"}}))
    with pytest.raises(RunError, match=naming(run, "morphomnist")):
        main(options(run))
    (run / "run.json").write_text(json.dumps(record))
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("folder", ["image", "pgm"])
def test_a_diverged_checkpoint_is_refused_by_name(run, folder):
    path = run / folder / "mechanism.pt"
    state = torch.load(path, weights_only=True)
    name = list(state["weights"])[-1]
    state["weights"][name].view(-1)[0] = math.nan
    save(path, state)
    with pytest.raises(RunError, match=naming(path, name)):
        main(options(run))
    assert not (run / "metrics.json").exists()


def test_predictors_of_another_graph_are_refused(run, tmp_path):
    from mechanisms.anticausal.model import FOLDER, Predictors, describe

    graph = open_run(run, "cpu")[1].graph
    model = Predictors(type(graph)(replace(v, unit="mm") if v.name == "thickness" else v for v in graph))
    save(run / FOLDER / "mechanism.pt", {**describe(model), "weights": model.state_dict()})
    with pytest.raises(RunError, match=naming(run / FOLDER / "mechanism.pt", "thickness.unit mm px mechanisms.predictors")):
        main(options(run))


def test_an_unknown_split_is_refused_by_the_command_line(capsys):
    with pytest.raises(SystemExit):
        run_command(Options, main, ["--split", "tset"])
    assert "tset" in capsys.readouterr().err
