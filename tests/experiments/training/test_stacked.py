"""Seeds that are trained at once are seeds trained alone."""

from __future__ import annotations

import pytest
import torch

from experiments.training.stacked import Stacked, can_stack, learn_stacked, pays
from experiments.training.store import folder_of
from mechanisms.runs.files import load, read_json
from mechanisms.training.config import RunOptions
from mechanisms.training.state import MetricsLog
from tests.experiments.toy import same, trainer


@pytest.mark.parametrize("name, batch_size", [("erm", 32), ("irm", 32), ("irm", 1000), ("vrex", 32), ("fishr", 96), ("coral", 32)])
def test_stacked_seeds_are_seeds_alone(toy, tmp_path, name, batch_size):
    settings = {"batch_size": batch_size, "weight_decay": 0.01, "schedule": "cosine", "l2": 0.01, "steps": 8,
                "settings": ("fishr.memory=0",)}
    alone = [trainer(toy, tmp_path / "alone", name, seed, **settings) for seed in (2, 5, 3)]
    stack = [trainer(toy, tmp_path / "stack", name, seed, **settings) for seed in (2, 5, 3)]
    assert learn_stacked(stack) == [2, 5, 3] and {p.name for p in stack[0].folder.parent.iterdir()} == {"seed-2", "seed-3", "seed-5"}
    for one, other in zip(alone, stack, strict=True):
        one.learn()
        states = [load(t.folder / "mechanism.pt", "classifier") for t in (one, other)]
        torch.testing.assert_close(states[1]["weights"], states[0]["weights"], rtol=1e-4, atol=1e-5)
        assert [s["selected"].keys() for s in states] == [{"iid", "worst-group", "oracle"}] * 2
        assert [r["step"] for r in states[1]["selected"].values()] == [r["step"] for r in states[0]["selected"].values()]
        logs = [MetricsLog.read(t.folder / "metrics.jsonl") for t in (one, other)]
        for ours, theirs in zip(*logs, strict=True):
            assert ours["step"] == theirs["step"] and ours["valid"] == pytest.approx(theirs["valid"], rel=1e-3, abs=1e-5)
            assert ours["train"] == pytest.approx(theirs["train"], rel=1e-3, abs=1e-5)
        assert read_json(one.folder / "config.json") == read_json(other.folder / "config.json")


def test_a_seed_of_a_stack_goes_on_alone(toy, tmp_path):
    learn_stacked([trainer(toy, tmp_path / "stack", "irm", seed) for seed in (0, 1)])
    finished = trainer(toy, tmp_path / "stack", "irm", 1)
    assert same(finished.learn().network.state_dict(), load(finished.folder / "mechanism.pt")["weights"])
    longer = trainer(toy, tmp_path / "stack", "irm", 1, options=RunOptions(tmp_path / "stack", resume=True), steps=20).learn()
    trainer(toy, tmp_path / "alone", "irm", 1).learn()
    expected = trainer(toy, tmp_path / "alone", "irm", 1, options=RunOptions(tmp_path / "alone", resume=True), steps=20).learn()
    torch.testing.assert_close(longer.network.state_dict(), expected.network.state_dict(), rtol=1e-4, atol=1e-5)


def test_an_interrupted_stack_is_resumed(toy, tmp_path, monkeypatch):
    learn_stacked([trainer(toy, tmp_path / "whole", "erm", seed) for seed in (0, 1)])
    calls = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mechanisms.training.loop.agree", lambda values, *_: (values[0], len(calls) > 6 or calls.append(1), values[2]))
        learn_stacked([trainer(toy, tmp_path / "parts", "erm", seed) for seed in (0, 1)])
    learn_stacked([trainer(toy, tmp_path / "parts", "erm", seed, RunOptions(tmp_path / "parts", resume=True)) for seed in (0, 1)])
    for seed in (0, 1):
        whole, parts = (load(folder_of(tmp_path / name, "erm", seed) / "mechanism.pt")["weights"] for name in ("whole", "parts"))
        assert same(whole, parts)


def test_what_is_not_stacked(toy, tmp_path):
    assert can_stack(trainer(toy, tmp_path, "irm")) and pays(trainer(toy, tmp_path, "irm"))
    assert not any(can_stack(trainer(toy, tmp_path, name)) for name in ("jtt", "lisa", "groupdro", "dfr", "fishr"))
    assert can_stack(trainer(toy, tmp_path, "fishr", settings=("memory=0",)))  # no state
    assert not can_stack(trainer(toy, tmp_path, "irm", network="smallcnn"))  # batch norm
    assert not can_stack(trainer(toy, tmp_path, "irm", patience=2))
    assert not pays(trainer(toy, tmp_path, "irm", hidden=4000))
    trainer(toy, tmp_path, "irm").learn()
    assert not can_stack(trainer(toy, tmp_path, "irm"))  # what is there already
    assert learn_stacked([trainer(toy, tmp_path, "irm", seed) for seed in (0, 1)]) == []


def test_a_stack_computes_each_seed(toy, tmp_path):
    trainers = [trainer(toy, tmp_path, "irm", seed) for seed in (0, 1)]
    models, batch = [one.build() for one in trainers], trainers[0].train.batch(slice(0, 32))
    stack = Stacked(models, [0, 1]).train()
    terms = stack(batch, None, 1.0)
    for model, seed in zip(models, (0, 1), strict=True):
        for name, term in model.train()(batch, None, 1.0).items():
            torch.testing.assert_close(terms[f"{name}@{seed}"], term, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["loss"], terms["loss@0"] + terms["loss@1"])
