"""Stress tests: the same rows and values for every classifier and both sources of images; counterfactuals to train on."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import pytest
import torch

from datasets.base import Split
from datasets.options import DataOptions
from datasets.registry import open_dataset
from datasets.schema import SchemaError, Variable
from datasets.task import task_of
from dscm.runs import open_run
from experiments.metrics.classification import majority
from experiments.stress import stresses
from experiments.stress.results import StressResults
from experiments.stress.run import AS_OBSERVED, MAJORITY, MODEL, OBSERVED, TRUTH, Classifier, stress_test
from experiments.stress.stresses import (
    QUANTILES,
    distinct_rows,
    draw_rows,
    draw_stresses,
    has_truth,
    model_images,
    observed_images,
    possible_stresses,
    true_images,
)
from experiments.stress.text import as_markdown
from experiments.training import counterfactuals
from experiments.training.counterfactuals import check_model, training_counterfactuals
from mechanisms.runs.files import RunError, read_json, write_json
from mechanisms.runs.folder import claim
from tests.errors import naming

DIGITS = {"train_digits": 96, "valid_digits": 32, "test_digits": 32, "renderings": 1}


@pytest.fixture(scope="module")
def task(session_cache):
    return task_of(open_dataset("morphomnist", DIGITS), "digit", ("thickness", "intensity"))


@pytest.fixture(scope="module")
def dscm(tiny_run):
    return open_run(tiny_run, "cpu")[0]


def by_name(task, **given):
    return {s.name: s for s in draw_stresses(task, **{"count": 20} | given)}


# ---------------------------------------------------------------------------------------------------- stresses
def test_what_is_asked(task):
    stresses = draw_stresses(task, count=20)
    names = [s.name for s in stresses]
    assert names[:3] == ["do(thickness)", "do(intensity)", "do(thickness, intensity)"]
    assert len(set(names)) == len(names) == 3 + 2 * len(QUANTILES)
    index = draw_rows(task, count=20)
    assert len(index.unique()) == 20 and torch.equal(index, index.sort().values) and 20 <= int(index.max()) < 32
    assert all(torch.equal(s.index, index) and all(len(v) == 20 for v in s.do.values()) for s in stresses)
    training = task.dataset.split("train").attributes
    drawn = stresses[0].do["thickness"]
    assert torch.isin(drawn, training["thickness"]).all() and len(drawn.unique()) > 10
    assert torch.equal(stresses[2].do["thickness"], drawn) and torch.equal(stresses[2].do["intensity"], stresses[1].do["intensity"])
    held = [s for s in stresses if s.attribute == "intensity" and s.value_label]
    expected = torch.quantile(training["intensity"], torch.tensor(QUANTILES))
    torch.testing.assert_close(torch.stack([s.do["intensity"][0] for s in held]), expected)
    assert all((s.do["intensity"] == s.do["intensity"][0]).all() for s in held)


def test_classes_that_training_has_shown(task):
    values = stresses.values_of(task.label, torch.tensor([0, 2, 2, 9]))
    assert [(int(value), label) for value, label in values] == [(0, "0"), (2, "2"), (9, "9")]


def test_a_function_of_the_seed(task):
    a, b, c = by_name(task), by_name(task), by_name(task, seed=1)
    assert all(torch.equal(a[n].do[k], b[n].do[k]) for n in a for k in a[n].do)
    assert not torch.equal(a["do(thickness)"].do["thickness"], c["do(thickness)"].do["thickness"])


def test_subjects_are_distinct(session_cache):
    task = task_of(open_dataset("morphomnist", {**DIGITS, "renderings": 3}), "digit", ("thickness",))
    assert torch.equal(distinct_rows(task), torch.arange(32))  # rows d, D + d and 2D + d show digit d
    with pytest.raises(SchemaError, match=naming("count=33 test morphomnist 32 2..32")):
        draw_stresses(task, count=33)


def test_named_shifts_and_labels_that_would_change(task):
    class Shifted(type(task.dataset)):
        spurious = ("intensity",)

        def shifts(self):
            return {"dark": lambda attributes, generator: {"intensity": 80 + 0 * attributes["intensity"]},
                    "relabelled": lambda attributes, generator: {"digit": attributes["digit"]}}

    shifted = task_of(Shifted(**DIGITS), "digit", ("intensity",))
    with pytest.raises(SchemaError, match=naming("morphomnist 'digit'")):
        draw_stresses(shifted, count=4)
    possible, refused = possible_stresses(shifted, count=4)
    assert len(possible) == 1 + len(QUANTILES) + 1 and list(refused) == ["relabelled"] and "'digit' itself" in refused["relabelled"]
    Shifted.shifts = lambda self: {"dark": lambda attributes, generator: {"intensity": 80 + 0 * attributes["intensity"]}}
    assert (draw_stresses(shifted, count=4)[-1].do["intensity"] == 80).all()


def test_shifts_are_not_called_as_other_columns(task):
    class Shifted(type(task.dataset)):
        pass

    for name in ("do(intensity)", "do(intensity=80)", AS_OBSERVED, "worst group", "worst intervention"):
        Shifted.shifts = lambda self, name=name: {name: lambda attributes, generator: {"intensity": 80 + 0 * attributes["intensity"]}}
        values = torch.full((96,), 80.0)
        shifted = task_of(Shifted(**DIGITS), "digit", ("intensity",))
        shifted.dataset.split("train").attributes["intensity"] = values
        with pytest.raises(SchemaError, match=naming(name, "morphomnist")):
            draw_stresses(shifted, count=4)


def test_each_value_of_a_continuous_attribute_is_asked_once():
    variable = Variable("x", "real")
    assert [label for _, label in stresses.values_of(variable, torch.tensor([1.0] * 9 + [5.0]))] == ["1", "1.4"]
    close = stresses.values_of(variable, 1000 + torch.arange(11) / 1000)
    assert len({label for _, label in close}) == len(close) == 5


def test_rows_that_are_sorted_by_class_are_drawn_of_all_classes(task):
    class Sorted(type(task.dataset)):
        def load(self, split):
            rows = super().load(split)
            order = rows["digit"].argsort()
            return {name: values[order] for name, values in rows.items()}

    dataset = Sorted(**{**DIGITS, "test_digits": 200})
    task = task_of(dataset, "digit", ("thickness",))
    digits = dataset.split("test").attributes["digit"]
    assert len(digits[:100].unique()) < 10 == len(digits[draw_rows(task, count=100)].unique())
    assert not torch.equal(draw_rows(task, count=100), draw_rows(task, count=100, seed=1))
    assert torch.equal(draw_rows(task, count=200), torch.arange(200))
    with pytest.raises(SchemaError, match=naming("count=1 test 2..200")):
        draw_rows(task, count=1)


def test_images_are_made_some_at_a_time(task, dscm, monkeypatch):
    """However many are asked for; what is told is the same, and each part has noise of its own."""
    weights, held = torch.randn(1024, 10, generator=torch.Generator().manual_seed(0)), []
    linear = Classifier("linear", 0, lambda images: held.append(len(images)) or images.flatten(1) @ weights)
    whole = stress_test(task, [linear], None, count=20)
    for module in (counterfactuals, stresses):
        monkeypatch.setattr(module, "CHUNK", 7)
    held.clear()
    parts = stress_test(task, [linear], None, count=20)
    assert set(held) == {7, 6} and len(parts.points) == len(whole.points)
    for one, other in zip(parts.points, whole.points, strict=True):
        assert one.measured.values == pytest.approx(other.measured.values, abs=1e-6) and one.images == 20
    stress = by_name(task)["do(thickness)"]
    made = [model_images(dscm, task, part, "test", 0, k) for k, part in enumerate(stress.parts())]
    assert torch.equal(torch.cat(made), model_images(dscm, task, stress, "test"))


def test_nothing_to_intervene_on(task):
    """There are the images as observed, and it is said that there is nothing else."""
    assert draw_stresses(replace(task, spurious=()), count=4) == []
    found = stress_test(replace(task, spurious=()), [Classifier("any", 0, lambda x: torch.zeros(len(x), 10))], count=20)
    assert {(p.source, p.stress, p.images) for p in found.points} == {(OBSERVED, AS_OBSERVED, 20)} and found.images == 20
    text = as_markdown(StressResults(found, {"any": "as given"}))
    assert "### As observed" in text and "No attribute is named that should not matter" in text and "nothing to intervene on" in text


# ---------------------------------------------------------------------------------------------------- images
def test_both_sources_get_the_same_rows_and_values(task, dscm, monkeypatch):
    stress = by_name(task)["do(thickness)"]
    expected = task.dataset.true_counterfactual("test", stress.index, stress.do)["image"]
    for module in (counterfactuals, stresses):
        monkeypatch.setattr(module, "CHUNK", 7)
    assert torch.equal(true_images(task, stress, "test"), expected)
    made = model_images(dscm, task, stress, "test")
    answer = dscm.counterfactual(task.dataset.split("test").batch(stress.index), stress.do)
    torch.testing.assert_close(made, answer.image, atol=1e-4, rtol=0)


def test_setting_what_is_there_changes_nothing(task, dscm):
    stress = by_name(task)["do(intensity)"]
    same = replace(stress, do={n: task.dataset.split("test").attributes[n][stress.index] for n in ("thickness", "intensity")})
    observed = observed_images(task, same, "test")
    assert torch.equal(model_images(dscm, task, same, "test"), observed)
    assert torch.equal(true_images(task, same, "test"), observed)


def test_noise_of_images_and_drawn_values_are_different_streams(task, monkeypatch):
    keys = []
    for module in (stresses, counterfactuals):
        monkeypatch.setattr(module, "seeded", lambda *key: keys.append(key) or torch.Generator().manual_seed(0))

    class Model:
        def counterfactual(self, rows, do, generator):
            return replace_image(rows["image"])

    def replace_image(image):
        return type("Answer", (), {"image": image})

    stress = draw_stresses(task, count=20)[0]
    drawn, keys[:] = set(keys), []
    model_images(Model(), task, stress, "test")
    assert keys and not drawn & set(keys)
    keys.clear()
    training_counterfactuals(task, Model(), per_row=2)
    assert len(keys) == len(set(keys)) == 2 * (2 + 1)  # of each copy: two attributes, one chunk


def test_a_model_of_other_images_is_refused(task, dscm, tiny_run, tmp_path):
    check_model(tiny_run, dscm, task.dataset)
    chosen = open_dataset("confounded", {"options": ";".join(f"{k}={v}" for k, v in DIGITS.items())})
    assert chosen.answered_by.title == "morphomnist" and len(chosen.split("train")) < 96
    check_model(tiny_run, dscm, chosen)  # the model of what its rows were selected from
    other = open_dataset("morphomnist", DIGITS)
    rows = other.split("train")
    other._splits["train"] = Split("train", 255 - rows.images, rows.attributes)  # the same graph and statistics
    claim(tmp_path, task.dataset, DataOptions("morphomnist"))
    with pytest.raises(RunError, match=naming("--model", tmp_path, "morphomnist")):
        check_model(tmp_path, dscm, other)
    record = read_json(tmp_path / "run.json")
    assert record["rows"] == task.dataset.training_fingerprint != other.training_fingerprint
    write_json(tmp_path / "run.json", {key: value for key, value in record.items() if key != "rows"})
    check_model(tmp_path, dscm, other)  # an older run does not say
    with pytest.raises(RunError, match=naming("--model", tiny_run)):
        check_model(tiny_run, dscm, open_dataset("morphomnist", {**DIGITS, "train_digits": 80}))


# ---------------------------------------------------------------------------------------------------- stress test
def test_every_classifier_on_every_stress(task, dscm):
    weights = torch.randn(1024, 10, generator=torch.Generator().manual_seed(0))
    seen = []

    def look(images):
        seen.append(len(images))
        return images.flatten(1) @ weights

    classifiers = [Classifier("linear", 0, look), Classifier("constant", 1, lambda images: torch.eye(10)[[3] * len(images)])]
    found = stress_test(task, classifiers, dscm, count=20)
    points = {(p.algorithm, p.source, p.stress): p.measured.values for p in found.points}
    assert len(points) == len(found.points) == 3 * (1 + 2 * 13) and sum(seen) == 20 * 27
    index = draw_rows(task, count=20)
    labels = task.dataset.split("test").attributes["digit"][index]
    for (name, _, _), values in points.items():
        if name == "constant":
            assert values["accuracy"] == float((labels == 3).double().mean()) and values.get("flip_rate", 0) == values.get("drop", 0) == 0
        if name == MAJORITY:
            assert values["accuracy"] == points[MAJORITY, OBSERVED, AS_OBSERVED]["accuracy"] and values["auroc"] == 0.5
    stress = by_name(task)["do(thickness)"]
    images = {TRUTH: true_images(task, stress, "test"), MODEL: model_images(dscm, task, stress, "test")}
    plain = (observed_images(task, stress, "test").flatten(1) @ weights).argmax(1)
    for source, changed in images.items():
        predicted = (changed.flatten(1) @ weights).argmax(1)
        values = points["linear", source, "do(thickness)"]
        assert values["accuracy"] == float((predicted == labels).double().mean())
        assert values["flip_rate"] == float((predicted != plain).double().mean())
    assert not found.missing


def test_groups_are_those_of_the_intervened_world(task):
    """do(thickness) moves intensity too, which it does not set: groups are then unknown."""
    from experiments.stress.run import groups_under

    stresses = by_name(task)
    attributes = {n: v[draw_rows(task, count=20)] for n, v in task.dataset.split("test").attributes.items()}
    assert groups_under(task, attributes, stresses["do(thickness)"]) is None
    both = stresses["do(thickness, intensity)"]
    assert torch.equal(groups_under(task, attributes, both), task.groups({**attributes, **both.do}))
    assert groups_under(task, attributes, stresses["do(intensity)"]) is not None


def test_what_has_no_truth_is_told(task):
    wrong = task_of(task.dataset, "digit", ("thickness",))
    wrong.dataset.__dict__["true_images_under"] = ()
    try:
        assert not has_truth(wrong, draw_stresses(wrong, count=4)[0])
        found = stress_test(wrong, [Classifier("any", 0, lambda x: torch.zeros(len(x), 10))], count=4)
        assert found.missing["do(thickness)"] == "no true images, and no model is given (--model RUN)"
        assert {p.source for p in found.points} == {OBSERVED}
    finally:
        del wrong.dataset.__dict__["true_images_under"]


def test_majority_is_trainings(task):
    assert majority(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]), 2).values["accuracy"] == pytest.approx(1 / 3)


# ---------------------------------------------------------------------------------------------------- training
def test_training_counterfactuals_keep_the_label(task):
    images = training_counterfactuals(task, None, per_row=2)
    rows = task.dataset.split("train")
    assert images.shape == (96, 2, 1, 32, 32) and images.dtype == torch.uint8
    assert not torch.equal(images[:, 0], images[:, 1]) and not torch.equal(images[:, 0], rows.images)
    read = task.dataset.measure(images[:, 0].float() / 255)["thickness"]
    assert abs(torch.corrcoef(torch.stack([read, rows.attributes["thickness"]]))[0, 1]) < 0.3  # redrawn
    assert abs(read.mean() - rows.attributes["thickness"].mean()) < 0.3  # from the marginal
    assert torch.equal(images, training_counterfactuals(task, None, per_row=2))
    assert not torch.equal(images, training_counterfactuals(task, None, per_row=2, seed=1))
    assert torch.equal(images[:, :1], training_counterfactuals(task, None, per_row=1))


def test_training_counterfactuals_are_kept(task, dscm, tmp_path, monkeypatch):
    made = []
    original = counterfactuals._made
    monkeypatch.setattr(counterfactuals, "_made", lambda *given: made.append(given) or original(*given))
    asked = [threading.Thread(target=training_counterfactuals, args=(task, dscm, 1, 0, tmp_path)) for _ in range(2)]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    first = training_counterfactuals(task, dscm, 1, 0, tmp_path)
    assert len(made) == 1 and torch.equal(first, original(task, dscm, task.dataset.split("train"), 1, 0))
    truth = training_counterfactuals(task, None, 1, 0, tmp_path)
    assert len(made) == 2 and not torch.equal(truth, first)
    path = next(tmp_path.glob("*truth*.pt"))
    rows = task.dataset.split("train")
    monkeypatch.setitem(task.dataset._splits, "train", Split("train", 255 - rows.images, rows.attributes))
    training_counterfactuals(task, None, 1, 0, tmp_path)  # other rows: not those that are kept
    assert len(made) == 3 and path.exists() and os.stat(path).st_size > 96 * 1024


def test_training_counterfactuals_bad_input(task):
    with pytest.raises(SchemaError, match="per_row=0"):
        training_counterfactuals(task, None, 0)
    with pytest.raises(SchemaError, match=naming("--spurious NAME")):
        training_counterfactuals(replace(task, spurious=()), None)
    unknown = task_of(open_dataset("morphomnist", DIGITS), "digit", ("thickness",))
    unknown.dataset.__dict__["true_images_under"] = ()
    with pytest.raises(RunError, match=naming("do(thickness) --model RUN")):
        training_counterfactuals(unknown, None)
