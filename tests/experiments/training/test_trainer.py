"""The trainer: stages that are trained once, resumed, overwritten or diverged."""

from __future__ import annotations

import shutil
import time

import pytest
import torch

from datasets.base import Split
from experiments.algorithms import dfr
from experiments.training.store import folder_of, list_trained, load_trained, results
from mechanisms.runs.files import RunError, load
from mechanisms.training import loop as training
from mechanisms.training.config import RunOptions
from mechanisms.training.state import MetricsLog
from tests.errors import naming
from tests.experiments.toy import command, files, same, trainer


def counted(monkeypatch) -> list[str]:
    """The folder of every training that is begun from now on, in ``<run>/classifiers``."""
    begun, genuine = [], training.fit

    def fit(model, train, valid, config, folder, description, options, *rest, **named):
        before = files(folder) if folder.exists() else None
        result = genuine(model, train, valid, config, folder, description, options, *rest, **named)
        if before is None or files(folder) != before:
            begun.append("/".join(folder.parts[folder.parts.index("classifiers") + 1 :]))
        return result

    for module in ("trainer", "stacked"):
        monkeypatch.setattr(f"experiments.training.{module}.fit", fit)
    return begun


def test_networks_of_a_seed_are_alike_whatever_was_drawn_before(toy, tmp_path):
    first = trainer(toy, tmp_path, "erm", 3).network().state_dict()
    torch.rand(5)
    assert same(first, trainer(toy, tmp_path, "irm", 3).network().state_dict())
    assert not same(first, trainer(toy, tmp_path, "erm", 4).network().state_dict())


def test_the_base_is_trained_once_and_shared(toy, tmp_path, monkeypatch):
    """And it is one of the run's classifiers."""
    begun, base = counted(monkeypatch), trainer(toy, tmp_path, "jtt").base()
    assert begun == ["erm/seed-0"] and list_trained(tmp_path) == [("erm", 0)] and not base.training
    before = files(tmp_path)
    assert same(trainer(toy, tmp_path, "dfr").base().network.state_dict(), base.network.state_dict())
    again = trainer(toy, tmp_path, "dfr", options=RunOptions(tmp_path, overwrite=True)).base()
    assert same(again.network.state_dict(), base.network.state_dict()) and files(tmp_path) == before and begun == ["erm/seed-0"]
    trainer(toy, tmp_path, "dfr", options=RunOptions(tmp_path, overwrite=True), steps=15).base()  # another plan
    assert begun == ["erm/seed-0"] * 2 and results(tmp_path)[0]["steps"] == 15


def test_overwriting_trains_each_once(toy, tmp_path, monkeypatch):
    """Also with seeds that are stacked, algorithms that begin with others, and these named last."""
    flags = ("--seeds", "1", "--network", "smallcnn", "--hidden", "8", "--steps", "4")
    arguments = ("--algorithm", "dfr,erm,masktune", *flags, "--set", "dfr.samplings=2")
    command(toy, tmp_path, *arguments)
    weights, begun = load(folder_of(tmp_path, "erm", 0) / "mechanism.pt")["weights"], counted(monkeypatch)
    command(toy, tmp_path, *arguments, "--overwrite")
    assert begun == ["erm/seed-0", "dfr/seed-0", "masktune/seed-0"]
    assert same(weights, load(folder_of(tmp_path, "erm", 0) / "mechanism.pt")["weights"])
    begun.clear()
    command(toy, tmp_path, "--algorithm", "dfr", *flags, "--set", "dfr.samplings=3", "--overwrite")
    assert begun == ["dfr/seed-0"] and len(list_trained(tmp_path)) == 3
    begun.clear()
    for again in ((), ("--overwrite",)):
        command(toy, tmp_path / "stacked", "--algorithm", "erm,dfr", "--seeds", "2", "--set", "dfr.samplings=2", *again)
    assert begun == ["erm/seeds-0-1", "dfr/seed-0", "dfr/seed-1"] * 2


def test_what_was_begun_anew_does_not_count_until_it_is_finished(toy, tmp_path, monkeypatch):
    command(toy, tmp_path, "--algorithm", "erm,groupdro", "--seeds", "1")
    for name, options in (("groupdro", {"overwrite": True}), ("erm", {"resume": True})):
        calls = []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mechanisms.training.loop.agree", lambda v, *_, calls=calls: (v[0], len(calls) > 2 or calls.append(1), v[2]))
            trainer(toy, tmp_path, name, options=RunOptions(tmp_path, **options), steps=12 if name == "groupdro" else 20).learn()
        with pytest.raises(RunError, match=naming(f"{name} seed 0 --resume")):
            load_trained(tmp_path, name, 0)
    assert list_trained(tmp_path) == []
    assert [row["algorithm"] for row in results(tmp_path)] == ["erm"]  # its twelve updates were there, their weights are not
    trainer(toy, tmp_path, "groupdro", options=RunOptions(tmp_path, resume=True)).learn()
    assert list_trained(tmp_path) == [("groupdro", 0)]


def test_fewer_updates_than_there_were_are_refused(toy, tmp_path):
    trainer(toy, tmp_path, "erm").learn()
    before = files(tmp_path)
    for options in (RunOptions(tmp_path), RunOptions(tmp_path, resume=True)):
        with pytest.raises(RunError, match=naming("12 5 --run --overwrite")):
            trainer(toy, tmp_path, "erm", options=options, steps=5).learn()
    assert files(tmp_path) == before


def test_a_head_on_another_body_is_refused(toy, tmp_path):
    trainer(toy, tmp_path, "dfr").learn()
    trainer(toy, tmp_path, "erm", options=RunOptions(tmp_path, overwrite=True), steps=13).learn()
    with pytest.raises(RunError, match=naming("begun_from base")):
        trainer(toy, tmp_path, "dfr", steps=13, options=RunOptions(tmp_path, resume=True)).learn()


def test_seconds_hold_what_is_done_between_stages(toy, tmp_path, monkeypatch):
    genuine = dfr.with_features
    monkeypatch.setattr(dfr, "with_features", lambda *given: time.sleep(0.2) or genuine(*given))
    one = trainer(toy, tmp_path, "dfr", steps=2)
    one.learn()
    rows = {row["algorithm"]: row["seconds"] for row in results(tmp_path)}
    logged = MetricsLog.read(one.folder / "metrics.jsonl")[-1]["seconds"]
    assert logged + 0.4 <= rows["dfr"] == one.row["seconds"] < logged + 1.4 and rows["erm"] > 0
    shutil.rmtree(one.folder)
    (one.folder / "earlier").mkdir(parents=True)
    (one.folder / "earlier" / "metrics.jsonl").write_text('{"step": 1, "seconds": 1000}')  # no stage of this one
    again = trainer(toy, tmp_path, "dfr", steps=2)
    again.learn()
    assert again.row["seconds"] < 100


def test_interrupted_and_resumed_is_uninterrupted(toy, tmp_path, monkeypatch):
    """Of an algorithm with state (q) and noise's place in its stream."""
    for name in ("groupdro", "lisa"):
        whole, calls = trainer(toy, tmp_path / "whole", name).learn().state_dict(), []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("mechanisms.training.loop.agree", lambda v, *_, calls=calls: (v[0], len(calls) > 6 or calls.append(1), v[2]))
            trainer(toy, tmp_path / "parts", name).learn()
        with pytest.raises(RunError, match=naming(tmp_path / "parts", "--resume")):
            trainer(toy, tmp_path / "parts", name).learn()
        parts = trainer(toy, tmp_path / "parts", name, options=RunOptions(tmp_path / "parts", resume=True)).learn().state_dict()
        assert same(whole, parts), name


def test_jtt_weighs_the_errors_of_a_short_training(toy, tmp_path):
    one, seen = trainer(toy, tmp_path, "jtt"), []
    kept = one.fit
    one.fit = lambda model, stage="", train=None, **changes: seen.append((stage, train, changes)) or kept(model, stage, train, **changes)
    one.learn()
    assert [(stage, changes) for stage, _, changes in seen] == [("identification", {"steps": 3}), ("", {})]
    weight = seen[1][1].attributes["weight"]
    assert weight.mean() == pytest.approx(1) and weight.max() / weight.min() == pytest.approx(20, rel=1e-4)
    assert (one.folder / "identification" / "mechanism.pt").exists()


def test_a_diverged_training_stops_and_keeps_what_was_good(toy, tmp_path):
    with pytest.raises(RunError, match=naming("vrex/seed-0 mechanism.pt")):
        trainer(toy, tmp_path, "vrex", steps=200, learning_rate=1e15, warmup=100_000_000, validations=200).learn()
    state = load(folder_of(tmp_path, "vrex", 0) / "mechanism.pt", "classifier")
    assert 0 < state["step"] < 150 and all(w.isfinite().all() for w in state["weights"].values())
    assert list_trained(tmp_path) == [] and state["diverged"] >= state["step"]
    with pytest.raises(RunError, match=naming(f"vrex seed 0 {state['diverged']} --learning-rate")):
        load_trained(tmp_path, "vrex", 0, "iid")


def test_a_schedule_runs_and_modes_are_right(toy, tmp_path):
    """Known mistakes of earlier implementations: a rate that never fell, and training in evaluation mode."""
    one = trainer(toy, tmp_path, "erm", network="smallcnn", schedule="step", steps=16, validations=16)
    model = one.build()
    before, modes = model.network.state_dict()["blocks.0.1.running_mean"].clone(), []
    model.network.blocks[0][1].register_forward_hook(lambda module, *_: modes.append(module.training))
    one.fit(model)
    rates = [row["learning_rate"] for row in MetricsLog.read(one.folder / "metrics.jsonl")]
    assert rates[:8] == [1e-3] * 8 and rates[-1] == pytest.approx(1e-5) and rates[9] == pytest.approx(1e-4)
    assert modes.count(True) == 16 and modes.count(False) >= 16 and not torch.equal(before, model.network.blocks[0][1].running_mean)
    assert not model.training


def test_a_full_batch_is_made_once_and_in_order(toy, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Split, "batch", lambda self, index, batch=Split.batch: made.append((self.name, index)) or batch(self, index))
    one = trainer(toy, tmp_path, "irm", batch_size=1000)
    one.learn()
    assert [index for name, index in made if name == "train"] == [slice(None)]


@pytest.mark.parametrize("budget", [{"steps": 12}, {"minutes": 0.02}])
@pytest.mark.parametrize("reset", [True, False])
def test_the_optimiser_is_new_where_the_penalty_sets_in(toy, tmp_path, monkeypatch, budget, reset):
    """Before each update: how many updates its moments are of, and whether the penalty has its weight."""
    seen, genuine = [], training.update

    def update(accelerator, model, optimizer, *rest):
        ages = {int(state["step"]) for state in optimizer.state.values()}
        seen.append((max(ages, default=0), model.weight(progress[-1])))
        return genuine(accelerator, model, optimizer, *rest)

    progress, told = [], training.agree
    monkeypatch.setattr(training, "agree", lambda values, *rest: progress.append(values[0]) or told(values, *rest))
    monkeypatch.setattr(training, "update", update)
    trainer(toy, tmp_path, "irm", settings=("anneal=0.5", f"reset={reset}"), **budget).learn()
    light = [weight for _, weight in seen].count(1.0)
    assert 0 < light < len(seen) and (light == 6 or "minutes" in budget)
    assert [age for age, _ in seen] == [*range(light), *range(0 if reset else light, len(seen) - (light if reset else 0))]


def test_a_training_interrupted_about_the_reset_resumes_to_the_same(toy, tmp_path, monkeypatch):
    settings = ("anneal=0.5",)
    trainer(toy, tmp_path / "whole", "irm", settings=settings).learn()
    for stop in (5, 6, 7):  # the penalty sets in before update 6 of 12
        run, calls = tmp_path / f"parts-{stop}", []
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "agree", lambda given, *_, n=stop, c=calls: (given[0], len(c) >= n or c.append(1), given[2]))
            trainer(toy, run, "irm", settings=settings).learn()
        trainer(toy, run, "irm", settings=settings, options=RunOptions(run, resume=True)).learn()
        whole, parts = (load(folder_of(r, "irm", 0) / "mechanism.pt")["weights"] for r in (tmp_path / "whole", run))
        assert same(whole, parts)
