"""Figures of classifiers against independent computations; tables, agreement and the command."""

from __future__ import annotations

import csv
import json
import math
import shutil
import textwrap
from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr
from torchmetrics.functional import classification

from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from datasets.task import task_of
from experiments.metrics.classification import FEWEST, auroc, average_precision, calibration_error, group_accuracies, log_odds, measure
from experiments.report.html import write_report
from experiments.report.sections import robustness as section
from experiments.robustness import main
from experiments.stress.agreement import agreement, agreement_figure
from experiments.stress.column import REFERENCE, Column, percent
from experiments.stress.figure import robustness_figure
from experiments.stress.files import save_results
from experiments.stress.options import Options
from experiments.stress.results import StressResults
from experiments.stress.robustness import robustness
from experiments.stress.run import AS_OBSERVED, MAJORITY, MODEL, OBSERVED, TRUTH, Point, Stressed, stress_test
from experiments.stress.stresses import draw_stresses
from experiments.stress.text import as_markdown, tables
from experiments.training.results import COLUMNS, save_tsv
from experiments.training.store import record
from mechanisms.runs.files import RunError
from tests.trees import wildcam

DATA = ("train_digits=96", "valid_digits=32", "test_digits=32", "renderings=1")
IMAGES = 32


@pytest.fixture(scope="module")
def task(session_cache):
    return task_of(open_dataset("morphomnist", dict(o.split("=") for o in DATA)), "digit", ("thickness", "intensity"))


def logits(rows: int, classes: int, seed: int = 0):
    """Random, a little better than chance, with ties."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    scores = torch.randn(rows, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return (scores * 4).round() / 4, labels


# ---------------------------------------------------------------------------------------------------- metrics
@pytest.mark.parametrize("classes", [2, 5])
def test_as_torchmetrics_has_it(classes):
    scores, labels = logits(700, classes)
    values, shares = measure(scores, labels).values, scores.softmax(1)
    expected = {
        "accuracy": classification.multiclass_accuracy(shares, labels, classes, average="micro"),
        "balanced_accuracy": classification.multiclass_accuracy(shares, labels, classes, average="macro"),
        "auroc": classification.multiclass_auroc(shares, labels, classes, average="macro"),
        "macro_f1": classification.multiclass_f1_score(shares, labels, classes, average="macro"),
        "ece": classification.multiclass_calibration_error(shares, labels, classes, n_bins=15, norm="l1"),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), abs=1e-5), name


def test_saturated_answers_are_still_ranked():
    """softmax rounds the share of class 1 to 1 for all of these; the logits are in perfect order all the same."""
    labels, right = torch.arange(40) % 2, torch.linspace(50, 60, 40)
    sure = torch.stack([torch.zeros(40), right + 20 * (labels == 1)], 1)
    assert auroc(sure.double().softmax(1), labels) == 0.75 and measure(sure, labels).values["auroc"] == 1
    generator = torch.Generator().manual_seed(0)
    logits, far = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator) * 1000
    expected = torch.tensor([[math.log(p / (1 - p)) for p in row] for row in logits.double().softmax(1).tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_odds(logits), expected)
    others = torch.stack([torch.cat([far[:, :k], far[:, k + 1 :]], 1).double().logsumexp(1) for k in range(4)], 1)
    torch.testing.assert_close(log_odds(far), far.double() - others)


def test_classes_without_an_image_are_told_not_invented():
    scores, labels = logits(200, 4)
    keep = labels != 2
    found = measure(scores[keep], labels[keep])
    assert found.absent == (2,)
    recalls = [float((scores[labels == k].argmax(1) == k).double().mean()) for k in (0, 1, 3)]
    assert found.values["balanced_accuracy"] == pytest.approx(sum(recalls) / 3)
    one = measure(scores[labels == 1], labels[labels == 1])
    assert "auroc" not in one.values and one.absent == (0, 2, 3)


def test_flips_and_drops_are_against_the_observed_images():
    labels = torch.tensor([0, 1, 1, 0])
    observed, now = torch.eye(2)[labels], torch.eye(2)[[0, 0, 1, 1]]
    values = measure(now, labels, observed=observed).values
    assert values["flip_rate"] == 0.5 and values["drop"] == 0.5
    gained = measure(observed, labels, observed=now).values
    assert gained["flip_rate"] == 0.5 and gained["drop"] == -0.5
    assert "flip_rate" not in measure(now, labels).values


def test_worst_group_has_images_enough():
    groups = torch.tensor([0] * 2 * FEWEST + [1] * 2 * FEWEST + [2] * (FEWEST - 1))
    right = torch.tensor([True] * 2 * FEWEST + [True, False] * FEWEST + [False] * (FEWEST - 1))
    accuracy, small = group_accuracies(right, groups)
    assert accuracy == {0: 1.0, 1: 0.5} and small == (2,)
    found = measure(torch.eye(2)[(~right).long()], torch.zeros(len(groups), dtype=torch.long), groups)
    assert found.values["worst_group"] == 0.5 and found.group == 1
    assert "worst_group" not in measure(torch.zeros(4, 2), torch.zeros(4).long(), torch.zeros(4).long()).values
    rare = torch.cat([groups, 3 + torch.arange(20)])  # the groups that count are no longer nearly all there is
    told = measure(torch.eye(2)[rare.long() % 2], torch.zeros(len(rare), dtype=torch.long), rare)
    assert "worst_group" not in told.values and told.group is None and len(told.small) == 21


def test_calibration_error_by_hand():
    """Four answers at .9, half of them right: |.5 − .9|; four at .6, all right: |1 − .6|."""
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    assert calibration_error(probabilities, labels) == pytest.approx(0.4, abs=1e-6)


def test_calibration_error_of_rounded_probabilities():
    """A probability that is rounded to 1 is in the bin of .99; torchmetrics gives it one of its own, and so another figure."""
    probabilities = torch.tensor([[1.0, 0.0]] * 4 + [[0.95, 0.05]] * 4)
    labels = torch.tensor([0, 0, 0, 1] + [0] * 4)
    assert calibration_error(probabilities, labels) == pytest.approx(abs(7 / 8 - 0.975))
    theirs = classification.multiclass_calibration_error(probabilities, labels, 2, n_bins=15, norm="l1")
    assert float(theirs) == pytest.approx((0.25 + 0.05) / 2)


def test_macro_f1_of_always_one_answer():
    """Of the always-majority baseline: F1 of its class is 2q / (1 + q), that of the others 0."""
    labels = (torch.arange(100) < 72).long()
    values = measure(torch.tensor([[0.0, 1.0]]).expand(100, -1), labels).values
    assert values["accuracy"] == 0.72 and values["balanced_accuracy"] == 0.5
    assert values["macro_f1"] == pytest.approx(0.72 / 1.72)


def test_average_precision_of_several_rows():
    scores, positive = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), torch.tensor([[True, False, True, False]] * 2)
    assert average_precision(scores, positive).tolist() == pytest.approx([(1 + 2 / 3) / 2, 2 / 3])


# ---------------------------------------------------------------------------------------------------- tables
def report_of(task, quality, seeds=(0, 1, 2), sources=(TRUTH, MODEL), off=0.0) -> StressResults:
    """Points of made-up classifiers: ``quality`` is algorithm → accuracy; the model's images are easier by ``off``."""
    stresses, points, labels = draw_stresses(task, count=IMAGES), [], torch.arange(IMAGES) % 10
    asked = [(OBSERVED, AS_OBSERVED, "", "")] + [(s, x.name, x.attribute, x.value_label) for x in stresses for s in sources]
    for k, (source, name, attribute, value) in enumerate(asked):
        for algorithm, good in quality.items():
            for seed in seeds:
                right = round(IMAGES * (good + (off if source == MODEL else 0) + 0.03 * seed - 0.02 * (k // max(len(sources), 1) % 4)))
                predicted = torch.where(torch.arange(IMAGES) < right, labels, (labels + 1) % 10)
                points.append(Point(algorithm, seed, source, name, attribute, value, IMAGES, measure(torch.eye(10)[predicted], labels)))
        points.append(Point(MAJORITY, None, source, name, attribute, value, IMAGES, measure(torch.zeros(IMAGES, 10), labels)))
    return StressResults(Stressed(task, "test", 0, tuple(stresses), tuple(points), {}), dict.fromkeys(quality, "last: weights of the end"))


def test_columns_are_means_over_seeds(task):
    report = report_of(task, {"erm": 0.5, "irm": 0.7})
    column = next(c for c in report.columns(TRUTH) if c.title == "do(thickness)")
    values = [p.measured.values["accuracy"] for p in report.points
              if (p.algorithm, p.source, p.stress) == ("irm", TRUTH, "do(thickness)")]
    mean = sum(values) / 3
    error = (sum((v - mean) ** 2 for v in values) / 2 / 3) ** 0.5
    assert percent(mean, error) == f"{100 * mean:.1f} ± {100 * error:.1f}"
    assert len(values) == 3 and column.cell("irm") == f"**{percent(mean, error)}**"
    assert not column.cell("erm").startswith("**")
    apart, apart_error = column.to_reference("irm")
    assert 0.15 < apart < 0.25 and apart_error < error  # paired: what the seeds share cancels
    assert column.to_reference("erm") is None and REFERENCE == "erm"
    titles = [c.title for c in report.columns(TRUTH)]
    assert titles == [AS_OBSERVED, "do(thickness)", "do(intensity)", "do(thickness, intensity)", "worst intervention"]
    behaviour = [c.title for c in report.behaviour(TRUTH)]
    assert behaviour == ["balanced accuracy", "macro-F1", "AUROC", "calibration error"]  # no flips were measured


def test_bold_looks_at_the_common_seeds_only():
    """Two common seeds leave one degree of freedom (t = 12.7), however many others there are."""
    best = {k: 0.8 + 0.01 * k for k in range(2)}
    other = {0: 0.70, 1: 0.73, **{k: 0.7 for k in range(10, 30)}}
    column = Column("c", "higher", {"a": best, "b": other, "c": {0: 0.1, 1: 0.1}})
    assert column.best == "a" and column.cell("b").startswith("**")  # 0.09 ± 0.01 behind
    third = Column("c", "higher", {"a": {**best, 2: 0.815}, "b": {**other, 2: 0.725}, "c": {0: 0.1, 1: 0.1}})
    assert not third.cell("b").startswith("**")


def test_errors_are_those_of_their_own_numbers_of_images(task):
    report = report_of(task, {"erm": 0.5, "irm": 0.7})
    assert "a sampling error of up to 8.8 points of accuracy that all algorithms share." in as_markdown(report)
    points = [replace(p, measured=replace(p.measured, values={**p.measured.values, "worst_group": 0.1}, group_images=10 + (p.seed or 0)))
              for p in report.points]
    told = as_markdown(replace(report, stressed=replace(report.stressed, points=tuple(points))))
    assert "that all algorithms share; a worst group has 10 to 12, which add up to 15.8 points." in told


def test_as_observed_where_nobody_makes_images(task, tmp_path):
    report = report_of(task, {"erm": 0.5, "irm": 0.7}, sources=())
    (heading, header, lines), = tables(report)
    assert heading == "As observed" and header == ["", "accuracy", "balanced accuracy", "macro-F1", "AUROC", "calibration error"]
    assert [line[0] for line in lines] == ["erm", "irm", f"*{MAJORITY}*"]
    assert "says nothing about robustness" in as_markdown(report) and "do(a):" not in as_markdown(report)
    assert all(path.stat().st_size > 100 for path in save_results(report, tmp_path))
    assert len(robustness_figure({OBSERVED: report.as_observed()}, report.names).axes) == 5
    assert not robustness_figure({}, report.names).axes


def test_worst_intervention_is_of_each_seed(task):
    report = report_of(task, {"erm": 0.5})
    for attribute in ("", "thickness", "intensity"):
        for seed, value in report.worst_interventions(TRUTH, attribute)["erm"].items():
            assert value == min(p.measured.values["accuracy"] for p in report.points if p.algorithm == "erm" and p.seed == seed
                                and p.source == TRUTH and p.value and attribute in ("", p.attribute))


def test_table_says_how_it_came_about(task):
    text = as_markdown(report_of(task, {"erm": 0.5, "irm": 0.7}))
    for told in ("last: weights of the end (erm, irm)", "majority class", "Seeds, of weights and training order: 3",
                 "32 images of distinct", "Difference of accuracy to erm on the same seeds", "worst intervention"):
        assert told in text
    one = as_markdown(report_of(task, {"erm": 0.5, "irm": 0.7}, seeds=(0,), sources=(TRUTH,)))
    assert "**" not in one and "Bold" not in one and "Bold" in text  # one seed proves nothing
    assert "### Does the model's" not in one and "\nDoes the model's stress test predict the true one? Not asked" in one
    assert "Majority class: always " in one and ", the commonest in training (" in one
    assert "with one seed there is no standard error" in one and "Not asked: no model is given (--model RUN)." in one
    assert "there is the model's test only" in as_markdown(report_of(task, {"erm": 0.5}, sources=(MODEL,)))


def test_the_baseline_of_the_foreground_is_chance(task):
    report = report_of(task, {"erm": 0.5}, sources=())
    points = tuple(replace(p, measured=replace(p.measured, values={**p.measured.values, "focus_share": 0.2})) for p in report.points)
    lines_of = {heading: lines for heading, _, lines in tables(replace(report, stressed=replace(report.stressed, points=points)))}
    assert [line[0] for line in lines_of["Foreground, images as observed"]] == ["erm", "*constant map (chance)*"]
    assert [line[0] for line in lines_of["As observed"]] == ["erm", f"*{MAJORITY}*"]


def test_more_images_are_advised_only_where_there_are_more(task):
    report = report_of(task, {"erm": 0.5}, sources=())
    points = tuple(replace(p, measured=replace(p.measured, small=(3,))) for p in report.points)
    for images, told in ((IMAGES, False), (IMAGES - 1, True)):
        few = tuple(replace(p, images=images) for p in points)
        assert ("--count takes more" in as_markdown(replace(report, stressed=replace(report.stressed, points=few)))) is told


def test_files(task, tmp_path):
    report = report_of(task, {"erm": 0.4, "irm": 0.6}, off=0.1)
    paths = save_results(report, tmp_path)
    assert [p.name for p in paths] == ["robustness.md", "robustness.csv", "robustness.tsv", "robustness.json", "robustness.png",
                                       "agreement.png"]
    rows = list(csv.DictReader(paths[1].open()))
    found = json.loads(paths[3].read_text())
    assert list(csv.DictReader(paths[2].open(), delimiter="\t")) == rows
    assert len(rows) == len(found["rows"]) and found["about"]["rules"] == dict.fromkeys(("erm", "irm"), "last: weights of the end")
    wanted = {"algorithm": "irm", "images_from": MODEL, "stress": "do(intensity)", "metric": "accuracy"}
    row = next(r for r in found["rows"] if wanted.items() <= r.items())
    column = next(c for c in report.columns(MODEL) if c.title == "do(intensity)")
    assert row["values"] == {str(s): v for s, v in column.values["irm"].items()} and row["to_erm"] == column.to_reference("irm")[0]
    worst = [r for r in rows if r["stress"] == "worst intervention" and r["algorithm"] == "erm" and r["images_from"] == TRUTH]
    assert [r["attribute"] for r in worst] == ["", "thickness", "intensity"]
    write_report(tmp_path / "r.html", "t", "l", [section(report, {p.stem: p for p in paths if p.suffix == ".png"})])
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img") == 2 and "Which classifiers survive" in page and "**" not in page and "Spearman" in page


# ---------------------------------------------------------------------------------------------------- agreement
def test_agreement_against_scipy(task):
    quality = {"erm": 0.3, "irm": 0.6, "vrex": 0.5}
    report = report_of(task, quality, off=0.1)
    found, true, model = report.agreement, {}, {}
    for p in report.points:
        if p.algorithm != MAJORITY and p.source in (TRUTH, MODEL):
            (true if p.source == TRUTH else model).setdefault((p.algorithm, p.stress), []).append(p.measured.values["accuracy"])
    x, y = ([sum(values) / 3 for values in side.values()] for side in (true, model))
    assert len(found.pairs) == len(x) == 3 * 13 and found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert found.difference == pytest.approx(sum(abs(a - b) for a, b in zip(x, y, strict=True)) / len(x))
    assert found.bias == pytest.approx(0.1, abs=0.02) and found.within == 1.0
    assert abs(found.worst.apart) == max(abs(a - b) for a, b in zip(x, y, strict=True))
    assert found.worst.algorithm in found.in_words() and "too easy" in found.in_words()
    assert len(agreement_figure(found).axes[0].collections) == 1 + 3


def test_agreement_of_too_little(task):
    assert agreement(report_of(task, {"erm": 0.5}, sources=(TRUTH,)).stressed) is None
    stressed = report_of(task, {"erm": 0.5}).stressed
    found = agreement(replace(stressed, points=tuple(p for p in stressed.points if p.stress in ("do(thickness)", AS_OBSERVED))))
    assert found.spearman is None and found.within is None and "no rank correlation" in found.in_words()


def test_floor_of_the_agreement_is_the_observed_image(task):
    stressed = report_of(task, {"erm": 0.3, "irm": 0.6, "vrex": 0.5}, off=0.1).stressed
    found, plain, true = agreement(stressed), {}, {}
    for p in stressed.points:
        if p.algorithm != MAJORITY and p.source in (TRUTH, OBSERVED):
            place = plain.setdefault(p.algorithm, []) if p.source == OBSERVED else true.setdefault((p.algorithm, p.stress), [])
            place.append(p.measured.values["accuracy"])
    x = [sum(values) / 3 for values in true.values()]
    y = [sum(plain[algorithm]) / 3 for algorithm, _ in true]
    assert found.floor == pytest.approx(sum(abs(a - b) for a, b in zip(x, y, strict=True)) / len(x))
    assert found.floor_spearman == pytest.approx(spearmanr(x, y).statistic)
    assert f"mean absolute difference of {100 * found.floor:.1f} points" in found.in_words()
    same = [p for p in stressed.points if p.source != MODEL]
    copied = tuple([*same, *(replace(q, source=MODEL, measured=next(p.measured for p in same if (p.algorithm, p.seed, p.source) == (
        q.algorithm, q.seed, OBSERVED))) for q in same if q.source == TRUTH)])
    copy = agreement(replace(stressed, points=copied))  # a model that returns what it is given is on its floor
    assert copy.difference == pytest.approx(copy.floor) and copy.spearman == copy.floor_spearman


def test_the_same_question_counts_once(task):
    stressed = report_of(task, {"erm": 0.3, "irm": 0.6}).stressed
    again = replace(stressed.stresses[0], name="again")
    twice = replace(stressed, stresses=(*stressed.stresses, again), points=(
        *stressed.points, *(replace(p, stress="again") for p in stressed.points if p.stress == again.name or p.stress == "do(thickness)")))
    assert agreement(twice) == agreement(stressed) and len(twice.different()) == len(stressed.stresses)


def test_share_of_rows_that_change(task):
    stressed = report_of(task, {"erm": 0.3}).stressed
    first, present = stressed.stresses[0], task.dataset.split("test").attributes["thickness"][:IMAGES]
    half = replace(first, do={"thickness": torch.where(torch.arange(IMAGES) < IMAGES // 2, present, present + 1)})
    assert stressed.changed(half) == 0.5 and stressed.changed(replace(first, do={"thickness": present})) == 0


def test_nobody_to_test(task):
    with pytest.raises(SchemaError, match="no classifier"):
        stress_test(task, [])


# ---------------------------------------------------------------------------------------------------- the command
NET = """
    import torch

    def build(shape, classes):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(NET))
    return f"{path}:build"


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """The tiny model's run, with classifiers of two seeds in it."""
    from experiments.train import main as train
    from experiments.training.options import Options as Training
    from mechanisms.training.config import RunOptions

    run = tmp_path_factory.mktemp("robust") / "run"
    shutil.copytree(tiny_run, run)
    given = Training(run=RunOptions(run), seeds=2, label="digit", spurious="intensity")
    training = replace(given.training, network="mlp", hidden=8, steps=2, validations=1, device="cpu")
    train(replace(given, data=replace(given.data, option=DATA), training=training))
    return run


def test_command(trained, mine, tmp_path, capsys):
    main(Options(run=trained, classifier=(mine,), name=("my net",), count=20, out=tmp_path / "out", device="cpu"))
    told = capsys.readouterr().out
    assert "spurious attributes intensity. 20 images" in told and "as given (my net)" in told
    assert "### Accuracy, the model's images" in told and "Over 12 points (2 algorithms × 6 stresses)" in told
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert found["about"]["model"] == str(trained) and {r["algorithm"] for r in found["rows"]} == {"erm", "my net", MAJORITY}
    assert {r["seeds"] for r in found["rows"] if r["algorithm"] == "erm"} == {2}


def test_results_as_tabs(trained, tmp_path):
    """A row for each algorithm, seed and rule, under names whose order is kept; what is not there is empty."""
    rows = list(csv.DictReader((trained / "classifiers" / "results.tsv").open(), delimiter="\t"))
    told = [json.loads(line) for line in (trained / "classifiers" / "results.jsonl").read_text().splitlines()]
    assert tuple(rows[0]) == COLUMNS and [(r["algorithm"], r["seed"], r["rule"]) for r in rows] == [
        (r["algorithm"], str(r["seed"]), rule) for r in told for rule in r["rules"]]
    first = rows[0]
    assert float(first["accuracy"]) == told[0]["rules"]["last"]["accuracy"] and float(first["majority"]) == told[0]["majority"]
    assert (first["shifted"] == "") == ("shifted" not in told[0]["rules"]["last"])
    record(tmp_path, {**told[0], "seed": 7, "rules": {"last": told[0]["rules"]["last"]}})
    assert [line.split("\t")[:3] for line in save_tsv(tmp_path).read_text().splitlines()[1:]] == [["erm", "7", "last"]]


def test_the_same_again(trained, mine):
    first, again = (robustness(run=trained, own=[(mine, None, "")], rule="iid", spurious=["thickness"], count=9, device="cpu")
                    for _ in range(2))
    assert first.points == again.points and first.rules["erm"].startswith("iid: best on validation")
    assert first.unconfounded(TRUTH) == "do(thickness)"


def test_own_classifier_alone(mine, tmp_path, capsys):
    given = Options(classifier=(mine,), label="digit", spurious="thickness", count=12, out=tmp_path / "o", device="cpu")
    main(replace(given, data=replace(given.data, option=DATA)))
    told = capsys.readouterr().out
    assert "Each classifier was trained once, elsewhere." in told and "| mine " in told and "Difference of accuracy" not in told


UNKNOWN = '''
    import torch
    from datasets import CausalDataset, Variable

    class Mine(CausalDataset):
        label, spurious = "kind", ("site",)
        variables = (Variable("kind", "binary"), Variable("site", "binary", parents=("kind",)),
                     Variable("image", "image", parents=("kind", "site"), shape=(1, 8, 8)))

        def load(self, split):
            kind = torch.arange(60) % 2
            return {"kind": kind, "site": (torch.arange(60) // 2) % 2, "image": torch.rand(60, 8, 8)}
'''


def test_command_without_truth_and_without_a_model(mine, tmp_path, capsys):
    (tmp_path / "scm.py").write_text(textwrap.dedent(UNKNOWN))
    given = Options(classifier=(mine,), out=tmp_path / "out", device="cpu")
    main(replace(given, data=replace(given.data, dataset=str(tmp_path / "scm.py"))))
    told = capsys.readouterr().out
    assert "flip rate" not in told and "spurious attributes, of those with 10 images or more, as observed." in told
    assert "### As observed" in told and "Nobody can make intervened images here" in told and "| worst group" in told
    assert told.index("### As observed") < told.index("wrote ") and "a worst group has 15" in told
    written = {f"robustness.{ending}" for ending in ("md", "csv", "tsv", "json", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written


def test_spurious_attributes_that_cause_the_label(tmp_path, capsys):
    """The camera decides which animals come by: nothing can be intervened on, and the table of the images as observed is there."""
    from experiments.train import main as train
    from experiments.training.options import Options as Training
    from experiments.training.options import TrainingFlags
    from mechanisms.training.config import RunOptions

    tree, run = wildcam(tmp_path / "tree"), tmp_path / "a run"
    flags = TrainingFlags(network="small", frozen=True, steps=2, validations=1, device="cpu")
    given = Training(run=RunOptions(run), algorithm="erm,irm", seeds=1, training=flags, data_fraction=0.8)
    data = replace(given.data, dataset="wildcam", data_dir=tree, option=("size=32",))
    train(replace(given, data=data))
    warned, told = capsys.readouterr(), json.loads((run / "classifiers" / "results.jsonl").read_text().splitlines()[0])
    assert "weights default" not in warned.out and "frozen True (flag)" in warned.out and "batch-size whole split (recipe)" in warned.out
    assert "clip none (recipe)" in warned.out and "data-fraction 0.8 (flag)" in warned.out
    assert "leave --frozen out, or take one that has pretrained weights" in warned.err
    assert told["data_fraction"] == 0.8 and told["box_noise"] is None
    main(Options(run=run, out=tmp_path / "out", device="cpu"))
    said = capsys.readouterr().out
    assert "Of do(location), do(location=…): not asked, since the label 'category' itself would change" in said
    assert "### As observed" in said and "| irm " in said and "| *majority class* |" in said and "balanced accuracy" in said
    assert "Trained with --data-fraction 0.8: erm, irm." in said and "No attribute is named" not in said and "--count takes" not in said
    assert "Majority class: always " in said

    folder = run / "classifiers" / "irm"  # a stack that was interrupted
    shutil.copytree(folder / "seed-0", folder / "seeds-3-4")
    shutil.copytree(folder / "seed-0", run / "classifiers" / "groupdro" / "seed-0")
    main(Options(run=run, out=tmp_path / "out", device="cpu"))
    said = capsys.readouterr().out
    again = f"python -m experiments.train --run '{run}' --algorithm"
    assert f"Left out: groupdro (seed 0) is unfinished, at step 2; {again} groupdro --resume" in said
    assert all(f"Left out: irm (seed {seed}) is unfinished, at step 2" in said for seed in (3, 4)) and "irm (seed 0) is" not in said
    with pytest.raises(RunError, match="has no classifier by groupdro; it has erm, irm. Left out: groupdro .seed 0. is unfinished"):
        main(Options(run=run, algorithm="groupdro", out=tmp_path / "out", device="cpu"))


@pytest.mark.parametrize(("changes", "told"), [
    ({"classifier": ("MINE",), "rule": "iid"}, "--rule chooses among the classifiers of a run: give --run"),
    ({"classifier": ("MINE",), "algorithm": "erm"}, "--algorithm chooses among"),
    ({"run": "R", "outputs": "logits"}, "--outputs logits is about a --classifier of your own"),
    ({}, "nothing to test: give --run"), ({"run": "R", "weights": ("w",)}, "--weights is given 1 times, --classifier 0 times"),
    ({"run": "R", "algorithm": "svm"}, "has no classifier by svm; it has erm"), ({"run": "R", "label": "thickness"}, "different labels"),
    ({"run": "R", "rule": "oracle"}, "has no weights by the rule 'oracle'"), ({"run": "R", "count": 999}, "count=999"),
    ({"run": "nowhere"}, "run folder nowhere does not exist"), ({"run": "R", "model": "nowhere"}, "nowhere does not exist"),
    ({"run": "R", "classifier": ("MINE", "MINE")}, "two classifiers are called 'mine'"),
])
def test_bad_input(trained, mine, tmp_path, changes, told):
    from pathlib import Path

    changes = {k: Path(trained if v == "R" else v) if k in ("run", "model") else v for k, v in changes.items()}
    changes = {k: tuple(mine if w == "MINE" else w for w in v) if k == "classifier" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=told):
        main(Options(out=tmp_path / "out", device="cpu", **changes))
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_run_without_classifiers_says_how(tiny_run, tmp_path):
    with pytest.raises(RunError, match="has no classifiers yet; train some: python -m experiments.train --run"):
        main(Options(run=tiny_run, out=tmp_path, device="cpu"))
    with pytest.raises(UserError, match="leave --dataset and its options out"):
        given = Options(run=tiny_run)
        replace(given, data=replace(given.data, dataset="colourmnist")).check()


def test_model_of_other_data_is_refused(tiny_run, mine, tmp_path):
    given = Options(classifier=(mine,), label="digit", spurious="thickness", model=tiny_run, out=tmp_path, device="cpu")
    with pytest.raises(RunError, match="was trained on other data than the classifiers are about"):
        main(replace(given, data=replace(given.data, option=("train_digits=80", *DATA[1:]))))
