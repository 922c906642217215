"""Comparisons: figures over seeds, tables with everybody in them, finished ones skipped, failures alone."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mechanisms.image
from datasets.errors import UserError
from datasets.options import DataOptions
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.evaluation import Evaluation
from dscm.metrics.score import Score
from experiments.comparison import methods, running, shared
from experiments.comparison import run as comparison
from experiments.comparison.aggregate import Quantity, aggregate
from experiments.comparison.figure import comparison_figure, curve_figure
from experiments.comparison.files import COLUMNS, save
from experiments.comparison.methods import METHODS, find_methods, trial_of
from experiments.comparison.options import Options
from experiments.comparison.results import Comparison, Spent
from experiments.comparison.running import attempt, run_all, score
from experiments.comparison.text import FLOOR_NAMES, everything, missing, summary
from experiments.comparison.trial import Trial
from experiments.metrics.seeds import best_of, difference
from mechanisms.image.config import ImageConfig
from mechanisms.image.registry import image_mechanisms
from mechanisms.runs.files import RunError, read_json
from mechanisms.runs.tables import mean_over, measured
from mechanisms.training.config import TrainingConfig
from tests.errors import naming

DIGITS = ("train_digits=48", "valid_digits=32", "test_digits=40", "renderings=1")
TINY = ImageConfig(z_dim=4, embedding=16, widths="16:8,8:16,4:16,1:16")


# ------------------------------------------------------------------------------------------------ figures over seeds
def evaluation(**values: float) -> Evaluation:
    """``truth_l1__thickness=1.5`` → a score of truth_l1 under do(thickness), and so on."""
    scores = []
    for key, value in values.items():
        metric, _, variable = key.partition("__")
        better = "0.9" if metric.startswith("coverage") else "higher" if metric == "effectiveness_accuracy" else "lower"
        settings = {"border": 2} if metric == "truth_l1" else {"level": 0.9} if better == "0.9" else {}
        floors = {"identity": 12.0, "truth": 0.0} if metric == "truth_l1" else {"ideal": 0.88} if better == "0.9" else {"real": 0.5}
        scores.append(Score(metric, value, 0.25, 100, "", better, f"do({variable})", "", settings, floors))
    return Evaluation(tuple(scores), {"free_energy": "no log_prob"}, {})


def results(**values: list[float]) -> dict[str, dict[int, Evaluation]]:
    return {name: {seed: evaluation(truth_l1__thickness=v) for seed, v in enumerate(each)} for name, each in values.items()}


def report(found: dict[str, dict[int, Evaluation]], budgets: tuple[float, ...] = ()) -> Comparison:
    about = {"dataset": "toy", "options": [], "training_images": 1000, "budget": "3 minutes", "budgets": list(budgets), "draws": 4,
             "border": 2, "threads": 1, "jobs": 1, "keep": "last",
             "questions": {"count": 100, "split": "test", "variables": ["thickness"], "seed": 0, "fingerprint": "abc"}}
    trained = {name: [Spent(1000, 180.0, 250_000)] * len(seeds) for name, seeds in found.items() if name.split(",")[0] not in FLOOR_NAMES}
    return Comparison(about, found, trained, {"hvae-logistic, seed 1": "it diverged"})


def test_mean_and_error_in_closed_form():
    mean, error = mean_over([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and error == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))
    assert mean_over([5.0]) == (5.0, None)
    assert mean_over([math.inf, math.inf]) == (math.inf, None)


def test_rows_are_over_seeds_or_with_one_seed_over_images():
    vae, hvae = aggregate(results(vae=[3.0, 5.0], hvae=[2.0]))
    assert (vae.mean, vae.error, vae.over, vae.values) == (4.0, 1.0, "seeds", {0: 3.0, 1: 5.0})
    assert (hvae.mean, hvae.error, hvae.over, hvae.images) == (2.0, 0.25, "images", 100)
    assert vae.floors == {"identity": 12.0, "truth": 0.0} and vae.quantity == Quantity("truth_l1", "do(thickness)", "", (("border", 2),))


def test_differences_are_paired():
    """Seeds that are good and bad for both leave no error in the difference."""
    rows = {row.method: row for row in aggregate(results(vae=[3.0, 5.0, 7.0], hvae=[2.0, 4.0, 6.0], supervised=[1.0]), ["supervised"])}
    assert rows["vae"].behind == (1.0, 0.0) and rows["hvae"].behind == (0.0, 0.0) and rows["supervised"].behind is None
    assert rows["vae"].error > 1
    assert difference({0: 3.0, 4: 9.0}, {0: 2.0, 5: 1.0}, "lower") == (1.0, None)
    assert difference({0: 3.0}, {1: 2.0}, "lower") is None


@pytest.mark.parametrize("better, best", [("lower", "a"), ("higher", "c"), ("0.9", "b")])
def test_best_is_best_in_the_metrics_direction(better, best):
    values = {"a": {0: 0.2}, "b": {0: 0.8}, "c": {0: 1.5}}
    assert best_of(values, better) == best and best_of({}, better) is None
    assert all(difference(v, values[best], better)[0] >= 0 for v in values.values())


@pytest.mark.parametrize("value, error, text", [(1.2345, 0.0123, "1.234 ± 0.012"), (12.3, None, "12.3"), (0.0, None, "0.0"),
                                                (-0.5, 0.1, "−0.50 ± 0.10"), (math.inf, None, "∞"),
                                                (0.9712, 0.0, "0.971 ± 0.000"), (1234.5, 100.0, "1234 ± 100")])
def test_figures_have_as_many_digits_as_count(value, error, text):
    assert measured(value, error) == text


# ------------------------------------------------------------------------------------------------ tables
FOUND = {**results(vae=[3.0, 5.0], hvae=[2.0, 2.5], supervised=[1.0, 1.5], identity=[12.0], truth=[0.0])}


def test_tables_name_everybody_and_their_floors():
    text = summary(report(FOUND))
    for line in ("| vae ", "| hvae ", "| *bound: supervised*", "| *floor: copying x*", "| *floor: the truth*"):
        assert line in text
    row = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line.count("|") == 3}
    assert row["vae"] == "**4.0 ± 1.0**" and row["hvae"] == "**2.25 ± 0.25**" and row["*floor: copying x*"] == "12.0"
    for condition in ("3 minutes", "Seeds: 2", "100 images of the test split", "seed 0", "last averaged weights",
                      "1,000 images to train on", "hvae-logistic, seed 1: it diverged", "standard error over seeds"):
        assert condition in text
    clear = summary(report(results(vae=[4.0, 4.1, 4.0], hvae=[2.0, 2.0, 2.1])))
    assert "| **2." in clear and "**4." not in clear  # of two seeds, a t-test can hardly tell; of three, this much
    assert "over images, there being one seed" in summary(report(results(vae=[3.0])))


def test_everything_is_in_the_long_table():
    found = {"vae": {0: evaluation(truth_l1__thickness=1.0, coverage_attribute__thickness=0.8, effectiveness_accuracy__digit=0.7)}}
    text = everything(report(found))
    assert all(word in text for word in ("truth_l1", "coverage_attribute", "effectiveness_accuracy", "0.88", "border 2", "level 0.9"))
    assert "free_energy (of vae): no log_prob" in missing(report(found))


def test_without_truth_only_the_columns_that_exist():
    found = {"vae": {0: evaluation(effectiveness_accuracy__digit=0.7)}}
    headings = [heading for heading, _ in report(found).tables()]
    assert headings == ["The same read by predictors: share of right classes"]
    assert "*floor: the truth*" not in summary(report(found))


def test_files_agree(tmp_path):
    made = report(FOUND)
    paths = save(made, tmp_path)
    assert [p.name for p in paths] == ["comparison.md", "comparison.csv", "comparison.json", "comparison.png"]
    with open(paths[1], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(made.rows) == 5
    told = json.loads(paths[2].read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    for row, line, state in zip(made.rows, rows, told["rows"], strict=True):
        assert (line["contestant"], float(line["mean"]), int(line["seeds"])) == (row.method, row.mean, len(row.values))
        assert float(line["error"]) == row.error and json.loads(line["settings"]) == state["settings"] == {"border": 2}
        assert state["mean"] == row.mean and state["values"] == {str(seed): value for seed, value in row.values.items()}
        assert float(line["floor_identity"]) == 12 and line["floor_ideal"] == ""
    assert told["contestants"]["supervised"]["bound"] and told["without"] == {"hvae-logistic, seed 1": "it diverged"}
    assert paths[3].stat().st_size > 5000 and paths[0].read_text().startswith("# Counterfactual image models compared\n\n- **toy**")


def test_infinite_figures_are_written_as_text(tmp_path):
    score = Score("truth_psnr", math.inf, None, 9, "dB", "higher", "do(a)", floors={"truth": math.inf})
    paths = save(report({"truth": {0: Evaluation((score,), {}, {})}}), tmp_path)
    assert json.loads(paths[2].read_text())["rows"][0]["mean"] == "inf" and "∞" in paths[0].read_text()


def test_figure_draws_methods_and_lines():
    panels = [(heading, column.title, column.rows) for heading, columns in report(FOUND).tables() for column in columns]
    figure = comparison_figure(panels, ["vae", "hvae", "supervised"], ["supervised"])
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["vae", "hvae"]
    points = {round(float(x), 3) for line in axes.lines for x in line.get_xdata()}
    assert {4.0, 2.25, 3.0, 5.0, 1.25, 0.0} <= points  # means, seeds, the bound, the truth
    assert "copying x 12" in axes.get_xlabel()


def test_curve_is_against_minutes():
    found = {f"hvae, {m:g} min": {0: evaluation(truth_l1__thickness=v)} for m, v in ((1.0, 4.0), (3.0, 2.0), (10.0, 1.5))}
    panels = [(heading, column.title, column.rows) for heading, columns in report(found, (1.0, 3.0, 10.0)).tables() for column in columns]
    axes = curve_figure(panels, list(found)).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 3, 10] and axes.lines[0].get_ydata().tolist() == [4, 2, 1.5]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "3", "10"]


# ------------------------------------------------------------------------------------------------ who takes part
def chosen(options: Options, dataset) -> tuple[list[str], dict[str, str]]:
    return methods.chosen(options.only, dataset, finetuned=options.finetuned, curve=bool(options.budgets))


def compare(options: Options) -> Comparison:
    return comparison.compare(options.conditions, options.run, only=options.only, finetuned=options.finetuned, seeds=options.seeds,
                              out=options.out, overwrite=options.overwrite)


def trial(options: Options, name: str, seed: int = 0, minutes: float | None = None) -> Trial:
    return trial_of(name, options.conditions, options.run, seed, minutes)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Options:
    training = TrainingConfig(steps=3, batch_size=8, device="cpu", precision="fp32", validations=1, validation_rows=16)
    return Options(DataOptions(option=DIGITS), tmp_path_factory.mktemp("compared") / "run", only="vae,identity,truth", seeds=2, count=20,
                   draws=0, predictor_steps=4, training=training, config=TINY)


@pytest.fixture(scope="module")
def dataset(options):
    return options.data.open()


def test_registry_is_complete(options, dataset):
    everybody = replace(options, only="", finetuned=True)
    assert chosen(everybody, dataset) == (list(METHODS), {})
    assert chosen(replace(options, only=""), dataset)[0] == [n for n in METHODS if n != "hvae-finetuned"]
    assert chosen(replace(options, only="hvae-finetuned"), dataset)[0] == ["hvae", "hvae-finetuned"]
    assert chosen(replace(options, only="", budgets="1,2"), dataset)[0] == ["hvae", "supervised"]
    assert {"vae", "hvae", "hvae-all-parents", "hvae-mediator", "hvae-logistic", "supervised", "identity", "truth"} <= set(METHODS)


def test_without_a_process_bounds_are_left_out(options, dataset, monkeypatch):
    monkeypatch.setattr(type(dataset), "true_images_under", ())
    names, absent = chosen(replace(options, only=""), dataset)
    assert "identity" in names and not {"truth", "supervised"} & set(names)
    assert absent == {name: "morphomnist does not know its own process" for name in ("truth", "supervised")}
    with pytest.raises(UserError, match=naming("truth morphomnist --only")):
        chosen(options, dataset)


@pytest.mark.parametrize("changes, message", [
    ({"only": "vae,gan"}, "--only vae,gan 'gan' vae hvae"), ({"seeds": 0}, "--seeds 0 [1, 1000]"),
    ({"draws": 1}, "--draws 1"), ({"budgets": "1,x"}, "--budgets '1,x'"), ({"jobs": 0}, "--jobs 0"),
    ({"budgets": "1,2"}, "--minutes"), ({"predictor_steps": 0}, "--predictor-steps 0"),
    ({"budgets": "1", "only": "truth", "training": TrainingConfig()}, "--budgets")])
def test_bad_options_are_refused(options, dataset, changes, message):
    with pytest.raises(UserError, match=naming(message)):
        changed = replace(options, **changes)
        changed.check()
        chosen(changed, dataset)


# ------------------------------------------------------------------------------------------------ from end to end
@pytest.fixture(scope="module")
def compared(options) -> Iterator[Comparison]:
    with pytest.MonkeyPatch.context() as patch:  # for all tests that look at the result, since they compare again
        patch.setattr(shared.attributes, "DEFAULT_STEPS", 5)
        patch.setattr(running, "EvaluationConfig", quick)
        yield compare(options)


def quick(draws: int) -> EvaluationConfig:
    return EvaluationConfig(draws=draws, cycle_images=4, cycles=(1,), steps=(2,), temperatures=(0.1,))


def test_bounds_are_exact(compared):
    """Copying and the truth, asked like any other model, are the floors of every other model's figures."""
    rows = {(row.method, row.quantity.metric, row.quantity.intervention): row for row in compared.rows}
    for variable in ("thickness", "intensity"):
        asked = "truth_l1", f"do({variable})"
        vae, identity, truth = (rows[name, *asked] for name in ("vae", "identity", "truth"))
        assert truth.mean == 0 and identity.mean == vae.floors["identity"] > 0
        assert len(vae.values) == 2 and vae.over == "seeds" and identity.over == "images"
    for row in compared.rows:
        for name in ("identity", "truth"):
            if row.method == name and name in row.floors and math.isfinite(row.mean):
                assert row.mean == pytest.approx(row.floors[name], rel=1e-5, abs=1e-5), row.quantity


def test_trained_ones_leave_whole_runs(options, compared):
    from dscm import DSCM

    for seed in (0, 1):
        folder = options.run / "vae" / f"seed-{seed}"
        assert DSCM.load(folder).graph.fingerprint() == options.data.open().graph.fingerprint()
        assert Evaluation.load(folder / "metrics.json").about["count"] == 20
    weights = [torch.load(options.run / f"vae/seed-{s}/image/mechanism.pt", weights_only=True)["weights"] for s in (0, 1)]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert {p.name for p in options.run.iterdir()} >= {"comparison.md", "comparison.csv", "comparison.json", "comparison.png"}


def test_finished_ones_are_not_done_again(options, compared, monkeypatch, capsys):
    monkeypatch.setattr(running, "score", lambda trial: pytest.fail(f"{trial.title} was finished"))
    monkeypatch.setattr(comparison, "share", lambda *_: pytest.fail("nothing is needed"))
    again = compare(options)
    assert summary(again) == summary(compared) and "4 of them finished" in capsys.readouterr().out


def test_unfinished_ones_go_on(options, compared):
    """Without its scores a method is scored again, from the training that its folder holds, to the same figures."""
    path = options.run / "vae" / "seed-1" / "metrics.json"
    before = read_json(path)["scores"]
    path.unlink()
    rows = (path.parent / "image" / "metrics.jsonl").read_text()
    compare(options)
    assert read_json(path)["scores"] == before and (path.parent / "image" / "metrics.jsonl").read_text() == rows


def test_a_failure_is_alone(options, compared, monkeypatch, capsys):
    def fail(trial):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setitem(METHODS, "hvae", replace(METHODS["hvae"], model=fail))
    with pytest.raises(RunError, match=naming("2 6 hvae seed 0 ZeroDivisionError")):
        compare(replace(options, only="hvae,vae,identity,truth"))
    assert "ZeroDivisionError" in (options.run / "hvae" / "seed-0" / "failure.txt").read_text()
    text = (options.run / "comparison.md").read_text()
    assert "- hvae, seed 0: ZeroDivisionError: no such thing" in text and "| vae " in text


def test_what_starts_from_a_failure_fails_too(options, compared):
    assert "starts from hvae, which has not finished" in attempt(trial(replace(options, run=options.run), "hvae-finetuned", 7))
    (options.run / "hvae-finetuned" / "seed-7" / "failure.txt").unlink()


def test_other_conditions_are_refused(options, compared, tmp_path):
    with pytest.raises(RunError, match=naming("count 20 → 30 --run --overwrite")):
        compare(replace(options, count=30))
    with pytest.raises(RunError, match=naming("training, steps 3 → 4")):
        compare(replace(options, training=replace(options.training, steps=4)))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=naming(tmp_path, "--run")):
        compare(replace(options, run=tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").exists()


def test_processes_of_their_own(options, compared, tmp_path, monkeypatch):
    """Two at a time: one finishes, one has no predictors to be judged by; both are told."""
    good, bad = trial(options, "identity"), trial(replace(options, run=tmp_path), "identity")
    (good.folder / "metrics.json").unlink()
    failures = run_all([good, bad], jobs=2)
    assert list(failures) == ["identity"] and "is not a run folder" in failures["identity"]
    assert (good.folder / "metrics.json").exists() and "copies x" in (good.folder / "log.txt").read_text()


def test_score_saves_what_it_returns(options, compared):
    identity = trial(options, "identity")
    made = score(identity)
    assert Evaluation.load(identity.folder / "metrics.json").scores == made.scores


def test_trials_have_folders_and_budgets_of_their_own():
    options = Options(run=Path("r"), budgets="0.5,3")
    assert options.minutes() == [0.5, 3.0]
    tuned = trial(options, "hvae-finetuned", 2, 0.5)
    assert tuned.folder == Path("r/0.5min/hvae-finetuned/seed-2") and tuned.source == Path("r/0.5min/hvae/seed-2")
    assert (tuned.training.minutes, tuned.training.seed, tuned.title) == (0.5, 2, "hvae-finetuned, seed 2, 0.5 min")
    assert trial(options, "truth").folder == Path("r/truth/once")


def test_fine_tuned_ones_have_teachers_of_their_own(tmp_path, options, compared):
    from mechanisms.runs.files import read_json

    asked = replace(options, run=tmp_path / "tuned", out=None, only="hvae-finetuned", seeds=1, finetune_share=0.5)
    report = compare(asked)
    record = read_json(tmp_path / "tuned" / "hvae-finetuned" / "seed-0" / "finetune.json")
    assert record["origin"]["teachers"] != record["origin"]["predictors"] and {"hvae", "hvae-finetuned"} <= set(report.results)
    assert (tmp_path / "tuned" / "teachers" / "predictors" / "mechanism.pt").exists()


TOY = """from dataclasses import dataclass

from mechanisms.image.config import ImageConfig
from mechanisms.image.registry import image_mechanisms
from mechanisms.image.vae import VAE


@dataclass(frozen=True)
class ToyConfig(ImageConfig):
    z_dim: int = 3
    widths: str = "16:4,8:4,4:4,1:4"


class Toy(VAE):
    \"\"\"A toy of another family.\"\"\"

    name = "toy"
    settings = ToyConfig
"""


def test_a_new_image_mechanism_is_compared(tmp_path, options, compared, monkeypatch):
    """Its file is all that it takes: it follows those that are known, with its docstring in the legend and its own settings."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(mechanisms.image, "__path__", [*mechanisms.image.__path__, str(tmp_path)])
    try:
        registry = find_methods(image_mechanisms())
        assert list(registry) == ["vae", "hvae", "toy", *list(METHODS)[2:]] and registry["toy"].about == "A toy of another family"
        model = registry["toy"].model(Trial(options.conditions, options.run, "toy"))
    finally:
        shutil.rmtree(options.run / "toy")
    assert model.image.name == "toy" and model.image.config.z_dim == 3
