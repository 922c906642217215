"""The bounds: a network that is told true pairs, the truth itself, and copying."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets import CausalDataset, SchemaError, open_dataset
from dscm.evaluation.questions import Questions, draw_questions
from experiments.comparison.bounds import Identity, Truth
from experiments.comparison.supervised import STAR, PairConfig, PairNetwork, Supervised, train_supervised, true_pairs
from mechanisms.training.config import RunOptions, TrainingConfig
from tests.errors import naming

FILE = Path(__file__).resolve().parents[3] / "docs" / "my_scm.py"
SMALL = PairConfig(widths=(24, 32), embedding=32, learning_rate=4e-3)
NAMES = ("radius", "brightness", "shape")


@pytest.fixture(scope="module")
def shapes() -> CausalDataset:
    return open_dataset(str(FILE), {"size": "400"})


@pytest.fixture(scope="module")
def questions(shapes) -> Questions:
    return draw_questions(shapes, "test", 60, seed=0)


@pytest.fixture(scope="module")
def observed(shapes, questions):
    return shapes.split("test").batch(questions.index)


def error(images, truth):
    return float((images - truth).abs().mean() * 255)


# ------------------------------------------------------------------------------------------------ pairs
def test_pairs_are_true(shapes):
    """Every pair of worlds is what the process says of that row under the attributes of the other world."""
    pairs = true_pairs(shapes, "valid", 2)
    assert pairs.rows == 400 and len(pairs) == 400 * len(pairs.links)
    items = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:200]
    batch = pairs.batch(items)
    do = {name: batch[name + STAR] for name in NAMES}
    truth = shapes.true_counterfactual("valid", items // len(pairs.links), do)["image"]
    assert (batch["image" + STAR] - truth).abs().max() <= 0.5 / 255 + 1e-6
    own = shapes.true_counterfactual("valid", items // len(pairs.links), {name: batch[name] for name in NAMES})["image"]
    assert (batch["image"] - own).abs().max() <= 0.5 / 255 + 1e-6


def test_pairs_start_where_observations_are(shapes):
    """Radius and shape have no causes: worlds under do of them are like observed ones; under do(brightness) they are not."""
    pairs = true_pairs(shapes, "valid", 2)
    worlds = 1 + 2 * len(NAMES)
    starts = set(pairs.links[:, 0].tolist())
    assert len(starts) == 1 + 2 * 2 and set(pairs.links[:, 1].tolist()) == set(range(worlds))
    assert (pairs.links[:, 0] != pairs.links[:, 1]).all()
    first = pairs.batch(torch.arange(400) * len(pairs.links))
    assert torch.equal(first["image"], shapes.split("valid").batch(torch.arange(400))["image"])
    for start in starts:  # brightness follows from radius in all of them, up to the row's own noise
        rows = slice(start * 400, start * 400 + 400)
        radius, brightness = pairs.attributes["radius"][rows], pairs.attributes["brightness"][rows]
        noise = torch.logit((brightness - 0.2) / 0.8) - 2 * (radius - 2.5)
        assert 0.4 < noise.std() < 0.6


def test_pairs_are_rendered_once(shapes, own_cache, monkeypatch):
    first = true_pairs(shapes, "valid", 1)
    monkeypatch.setattr(type(shapes), "true_counterfactual", None)
    again = true_pairs(shapes, "valid", 1)
    assert torch.equal(first.images, again.images) and all(torch.equal(first.attributes[n], again.attributes[n]) for n in NAMES)


def test_no_pairs_without_a_process(shapes, monkeypatch):
    monkeypatch.setattr(type(shapes), "true_images_under", ())
    with pytest.raises(SchemaError, match=naming(shapes.title)):
        true_pairs(shapes, "valid")


# ------------------------------------------------------------------------------------------------ network
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 14, 10)])
def test_network_starts_as_the_identity_on_any_size(shapes, shape):
    graph = type(shapes.graph)(replace(v, shape=shape) if v.kind == "image" else v for v in shapes.graph)
    network, rows = PairNetwork(graph, SMALL), shapes.split("test").batch(slice(0, 4))
    images = torch.rand(4, *shape)
    others = {name: values.flip(0) for name, values in rows.items() if name != "image"}
    assert torch.equal(network.change(images, rows, others), images)


def test_gradients_reach_every_parameter(shapes):
    network = PairNetwork(shapes.graph, SMALL)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    network(true_pairs(shapes, "valid", 1).batch(torch.arange(8)))["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_loss_is_the_error_of_255(shapes):
    batch = true_pairs(shapes, "valid", 1).batch(torch.arange(8))
    loss = PairNetwork(shapes.graph, SMALL)(batch)["loss"]
    assert loss.shape == (8,) and loss.mean().item() == pytest.approx(error(batch["image"], batch["image" + STAR]), rel=1e-5)


def test_learns_the_truth_of_a_toy(shapes, questions, observed, tmp_path):
    """After seconds well below copying, all in all and where a number is set; and a finished training stays as it is."""
    training = TrainingConfig(steps=250, device="cpu", precision="fp32", seed=0, validations=1, validation_rows=100, ema=0.98)
    network = train_supervised(shapes, training, RunOptions(tmp_path), SMALL, renderings=2)
    model, ours, copying = Supervised(network, Truth(shapes, questions)), {}, {}
    for question in questions.questions:
        answer = model.counterfactual(observed, question.do)
        truth = shapes.true_counterfactual("test", question.index, question.do)
        ours[question.variable] = error(answer.image, truth["image"])
        copying[question.variable] = error(observed["image"], truth["image"])
        assert all(torch.equal(answer[name], truth[name]) for name in NAMES)
        assert answer.image.min() >= 0 and answer.image.max() <= 1
    assert sum(ours.values()) < 0.7 * sum(copying.values())
    assert ours["radius"] < 0.7 * copying["radius"] and ours["brightness"] < 0.4 * copying["brightness"]
    again = train_supervised(shapes, training, RunOptions(tmp_path, resume=True), SMALL, renderings=2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ truth and identity
def test_truth_is_the_process(shapes, questions, observed):
    truth = Truth(shapes, questions)
    for question in questions.questions:
        answer, told = truth.counterfactual(observed, question.do), shapes.true_counterfactual("test", question.index, question.do)
        assert all(torch.equal(answer[name], told[name]) for name in (*NAMES, "image"))
    assert torch.equal(truth.counterfactual(observed, {}).image, observed["image"])


def test_truth_goes_there_and_back(shapes, questions, observed):
    """An observation may be a true counterfactual: the way back ends at the row itself."""
    truth, do = Truth(shapes, questions), questions.questions[0].do
    there = dict(truth.counterfactual(observed, do))
    back = truth.counterfactual(there, {name: observed[name] for name in ("radius", "brightness")})
    assert (back.image - observed["image"]).abs().max() <= 0.5 / 255 + 1e-6
    shape = {"shape": 1 - observed["shape"]}
    one, both = truth.counterfactual(there, shape), shapes.true_counterfactual("test", questions.index, {**do, **shape})
    assert torch.equal(one.image, both["image"])


def test_truth_refuses_what_it_does_not_know(shapes, questions, observed, monkeypatch):
    truth = Truth(shapes, questions)
    more = {name: torch.cat([v, v]) for name, v in observed.items()}
    with pytest.raises(SchemaError, match=naming("60 120")):
        truth.counterfactual(more, {"radius": 3.0})
    monkeypatch.setattr(type(shapes), "true_images_under", ("radius",))
    with pytest.raises(SchemaError, match=naming("do(shape)")):
        Truth(shapes, questions).counterfactual(observed, {"shape": 1})
    monkeypatch.setattr(type(shapes), "true_images_under", ())
    with pytest.raises(SchemaError, match=naming(shapes.title)):
        Truth(shapes, questions)


def test_identity_copies(shapes, questions, observed):
    answer = Identity(shapes.graph).counterfactual(observed, {"radius": 3.0})
    assert torch.equal(answer.image, observed["image"]) and (answer["radius"] == 3).all()
    assert torch.equal(answer["brightness"], observed["brightness"])
