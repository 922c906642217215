"""The shared interventions: a function of their seed, forced away from what was observed, and refused for other rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.schema import SchemaError, Variable
from dscm.evaluation.questions import AWAY, Questions, draw_questions, fingerprint
from mechanisms.runs.files import RunError
from tests.errors import naming


@dataclass
class Shades(CausalDataset):
    """shade → tint; both → image; site is no cause of it."""

    rows: int = 40
    dark: float = 20.0

    variables = (Variable("shade", "interval", low=0, high=255), Variable("tint", "categorical", ("shade",), classes=4),
                 Variable("site", "binary"), Variable("image", "image", ("shade", "tint"), shape=(1, 6, 6)))

    def load(self, split: str) -> dict[str, Tensor]:
        shade = torch.linspace(self.dark, 200, self.rows)
        tint = torch.arange(self.rows) % 3  # class 3 is never seen
        image = ((shade + tint) / 255).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)
        return {"shade": shade, "tint": tint, "site": torch.arange(self.rows) % 2, "image": image}


def test_one_question_for_each_cause_of_the_image():
    questions = draw_questions(Shades(), count=8)
    assert [q.name for q in questions.questions] == ["do(shade)", "do(tint)"] and len(questions) == 8
    assert all(torch.equal(q.index, torch.arange(8)) and q.values.shape == (8,) for q in questions.questions)
    assert questions.questions[0].do.keys() == {"shade"} and len(questions.questions[0].first(3).values) == 3


def test_they_are_a_function_of_the_seed():
    first, again, other = (draw_questions(Shades(), count=30, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(first.questions, again.questions, other.questions, strict=True):
        assert torch.equal(a.values, b.values) and not torch.equal(a.values, c.values)
    assert first.about() == again.about() != other.about()


@pytest.mark.parametrize("seed", range(3))
def test_values_come_from_training_and_are_away_from_the_observed_ones(seed):
    dataset = Shades()
    observed, training = dataset.split("test").attributes, dataset.split("train").attributes
    shade, tint = draw_questions(dataset, count=40, seed=seed).questions
    assert torch.isin(shade.values, training["shade"]).all()
    assert ((shade.values - observed["shade"]).abs() >= AWAY * dataset.graph["shade"].statistics.std).all()
    assert tint.values.dtype == torch.int64 and (tint.values != observed["tint"]).all()
    assert set(tint.values.tolist()) == {0, 1, 2}  # what training has shown


def test_other_classes_are_drawn_uniformly():
    dataset = Shades(rows=3000)
    values = draw_questions(dataset, count=3000).questions[1].values
    for present in range(3):
        share = (values[dataset.split("test").attributes["tint"] == present] == (present + 1) % 3).float().mean()
        assert abs(share - 0.5) < 0.06


@pytest.mark.parametrize("count", [0, 1, 41])
def test_refuses_a_count_that_the_split_has_not(count):
    with pytest.raises(SchemaError, match=naming(f"count={count} test Shades 40 2..40")):
        draw_questions(Shades(), count=count)


def test_refuses_an_unknown_split_and_an_image_without_causes():
    class Alone(Shades):
        variables = (*Shades.variables[:3], Variable("image", "image", (), shape=(1, 6, 6)))

    with pytest.raises(SchemaError, match=naming("'tset'")):
        draw_questions(Shades(), "tset", 8)
    with pytest.raises(SchemaError, match=naming("Alone")):
        draw_questions(Alone(), count=8)


def test_a_single_class_leaves_no_other_to_ask_about():
    class Uniform(Shades):
        def load(self, split):
            return {**super().load(split), "tint": torch.zeros(40, dtype=torch.long)}

    with pytest.raises(SchemaError, match=naming("tint")):
        draw_questions(Uniform(), count=8)


# -------------------------------------------------------------------------------------------------------- files
def test_a_file_gives_the_same_questions(tmp_path):
    questions = draw_questions(Shades(), "valid", 12, seed=5)
    questions.save(tmp_path / "q.json")
    again = Questions.load(tmp_path / "q.json", Shades(), "valid")
    assert again.about() == questions.about() and json.loads((tmp_path / "q.json").read_text())["seed"] == 5
    for a, b in zip(questions.questions, again.questions, strict=True):
        assert a.variable == b.variable and torch.equal(a.values, b.values) and torch.equal(a.index, b.index)


class Other(Shades):
    """The same data under another name."""


@pytest.mark.parametrize("dataset, split, said", [(Other(), "test", "Shades Other"),
                                                  (Shades(), "valid", "test valid --split"),
                                                  (Shades(rows=10), "test", "test Shades 10"),
                                                  (Shades(dark=21.0), "test", "Shades test")])
def test_a_file_is_refused_for_other_rows(tmp_path, dataset, split, said):
    draw_questions(Shades(), "test", 12).save(tmp_path / "q.json")
    with pytest.raises(RunError, match=naming(tmp_path / "q.json", said)):
        Questions.load(tmp_path / "q.json", dataset, split)


def damaged(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return apply


@pytest.mark.parametrize("damage, error, said", [
    (lambda path: path.write_text("{"), RunError, "q.json"),
    (lambda path: path.write_text("[]"), RunError, "q.json list"),
    (damaged(lambda s: s.update(kind="evaluation")), RunError, "q.json dscm.evaluate --interventions"),
    (damaged(lambda s: s["interventions"][0].update(variable="shad")), SchemaError, "'shad'"),
    (damaged(lambda s: s["interventions"][0]["values"].pop()), RunError, "q.json 11 shade 12"),
    (damaged(lambda s: s["interventions"][0]["values"].__setitem__(3, 300)), SchemaError, "shade=300 3"),
])
def test_a_damaged_file_is_refused(tmp_path, damage, error, said):
    path = tmp_path / "q.json"
    draw_questions(Shades(), count=12).save(path)
    damage(path)
    with pytest.raises(error, match=naming(said)):
        Questions.load(path, Shades())


def test_the_fingerprint_sees_attributes_and_images():
    rows, index = Shades().split("test"), torch.arange(5)
    assert fingerprint(rows, index) == fingerprint(Shades().split("test"), index)
    assert fingerprint(rows, index) != fingerprint(rows, torch.arange(1, 6))
    assert fingerprint(rows, index) != fingerprint(Shades(dark=21.0).split("test"), index)
    assert fingerprint(rows, index) != fingerprint(rows.without_images(), index)
