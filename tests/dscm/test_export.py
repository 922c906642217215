"""Intervened images on disk: the same whatever the shards and processes, resumed, read back, never mixed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dscm.export import Options, main
from dscm.exports.dataset import PROVENANCE, Export, claim, open_export, weights_hash
from dscm.exports.run import values_of
from dscm.runs import open_run
from mechanisms.runs.files import RunError
from tests.errors import naming

ROOT = Path(__file__).resolve().parents[2]
DO = ("thickness~marginal", "intensity=100")


@pytest.fixture(scope="module")
def model(tiny_run):
    return open_run(tiny_run, "cpu")


@pytest.fixture
def export(model):
    def make(**changes):
        dscm, dataset = model
        settings = {"count": 10, "shard_size": 4, "draws": 2, "truth": True} | changes
        return Export(dscm, dataset, "test", interventions=values_of(DO, dataset, "test", 0), **settings)
    return make


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip((a.images, a.truth, a.source, a.draw, *a.attributes.values()),
                                                 (b.images, b.truth, b.source, b.draw, *b.attributes.values()), strict=True))


def test_reads_back_what_the_model_says(export, model, tmp_path):
    dscm, dataset = model
    made = export(draws=None)
    assert made.write(tmp_path) == (6, 0)
    found = open_export(tmp_path)
    values = made.interventions["thickness~marginal"]["thickness"]
    observed = dataset.split("test").batch(torch.arange(32))
    answer = dscm.counterfactual(observed, {"thickness": values})
    assert len(found) == 20 and found.interventions == ("thickness~marginal",) * 10 + ("intensity=100",) * 10
    assert torch.equal(found.source, torch.arange(10).repeat(2)) and not found.draw.any()
    for name in ("thickness", "intensity"):
        torch.testing.assert_close(found.attributes[name][:10], answer[name][:10], rtol=1e-6, atol=0)
    assert found.attributes["digit"].dtype == torch.long
    assert torch.equal(found.attributes["digit"], observed["digit"][:10].repeat(2))
    assert (found.attributes["intensity"][10:] == 100).all()
    assert (found.images[:10].float() / 255 - answer.image[:10]).abs().max() <= 0.5 / 255 + 1e-6
    truth = dataset.true_counterfactual("test", torch.arange(10), {"thickness": values[:10]})["image"]
    assert torch.equal(found.truth[:10], (truth * 255).round().to(torch.uint8))
    batch = found.batch([0, 3])  # a split like any other
    assert batch["image"].shape == (2, 1, 32, 32) and batch["image"].max() <= 1


def test_draws_of_a_row_lie_beside_each_other_and_differ(export, tmp_path):
    export().write(tmp_path)
    found = open_export(tmp_path)
    assert torch.equal(found.source[:4], torch.tensor([0, 0, 1, 1])) and torch.equal(found.draw[:4], torch.tensor([0, 1, 0, 1]))
    assert not torch.equal(found.images[0], found.images[1]) and torch.equal(found.truth[0], found.truth[1])


def test_neither_shards_nor_processes_nor_count_matter(export, tmp_path):
    whole = export(shard_size=100)
    whole.write(tmp_path / "whole")
    for rank in (1, 0):  # as two processes would, in any order
        export(shard_size=3).write(tmp_path / "parts", rank, 2)
    expected = open_export(tmp_path / "whole")
    assert same(open_export(tmp_path / "parts"), expected)
    export(count=4).write(tmp_path / "few")
    few = open_export(tmp_path / "few")
    assert torch.equal(few.images[:8], expected.images[:8]) and torch.equal(few.images[8:], expected.images[20:28])


def test_goes_on_where_it_stopped(export, tmp_path):
    export().write(tmp_path)
    before = open_export(tmp_path)
    shards = sorted(tmp_path.rglob("*.csv"))
    shards[2].unlink()  # killed before its shard was complete
    kept = shards[0].with_suffix(".pt").stat().st_mtime_ns
    with pytest.raises(RunError, match=naming("00002.csv 3 6 dscm.export")):
        open_export(tmp_path)
    assert export().write(tmp_path) == (1, 5)
    assert same(open_export(tmp_path), before) and shards[0].with_suffix(".pt").stat().st_mtime_ns == kept


def _killed(export, out: str, form: str, function: str, number: int) -> None:
    """Write, and be killed at the ``number``-th call of ``os.function``, when a temporary file is there."""
    real, calls = getattr(os, function), []

    def kill(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, function, kill)
    torch.set_num_threads(1)
    export(form=form).write(Path(out))


@pytest.mark.parametrize("form, function, number", [("pt", "replace", 1), ("pt", "replace", 4), ("npz", "replace", 3),
                                                    ("png", "replace", 2), ("png", "replace", 30), ("pt", "link", 1), ("pt", "unlink", 1)])
def test_a_killed_export_leaves_no_litter_once_it_is_done(export, tmp_path, form, function, number):
    """It has the same files with the same content as one that was not killed."""
    export(form=form).write(tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(export, str(tmp_path / "out"), form, function, number))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and len(list((tmp_path / "out").rglob(".*.tmp"))) == 1
    export(form=form).write(tmp_path / "out")
    whole, resumed = ({p.relative_to(out): p.is_file() and p.read_bytes() for p in out.rglob("*")} for out in (
        tmp_path / "whole", tmp_path / "out"))
    assert resumed.keys() == whole.keys() and (form == "npz" or resumed == whole)  # a ZIP archive of numpy tells the time


@pytest.mark.parametrize("form", ["npz", "png"])
def test_formats_hold_the_same(export, tmp_path, form):
    export().write(tmp_path / "pt")
    export(form=form).write(tmp_path / form)
    expected, found = open_export(tmp_path / "pt"), open_export(tmp_path / form)
    assert torch.equal(found.batch(range(40))["image"], expected.batch(range(40))["image"])
    assert torch.equal(torch.as_tensor(np.stack([found.truth[k] for k in range(40)])), expected.truth)
    assert all(torch.equal(found.attributes[n], expected.attributes[n]) for n in expected.attributes)


def test_anything_can_read_it(export, tmp_path):
    """The CSV names the file of each image, relative to itself."""
    export(form="png").write(tmp_path)
    table = next(tmp_path.glob("00-*/00001.csv"))
    lines = list(csv.DictReader(table.open()))
    assert [line["source row"] for line in lines[:3]] == ["4", "4", "5"] and lines[0]["intervention made"] == "thickness~marginal"
    pixels = np.array(Image.open(table.parent / lines[2]["image file"]))
    assert pixels.shape == (32, 32) and np.array_equal(pixels, open_export(tmp_path).images[10][0])


def test_foreign_folders_are_left_alone(export, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=naming(tmp_path, "--out thesis.tex provenance.json")):
        export().write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    export().write(tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    for change, told in (({"seed": 1}, "seed 0 1"), ({"shard_size": 5}, "shard_size 4 5"), ({"count": 9}, "count 10 9")):
        with pytest.raises(RunError, match=naming(tmp_path / "out", told)):
            export(**change).write(tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(RunError, match=naming(tmp_path / "thesis.tex")):
        export().write(tmp_path / "thesis.tex")
    for stranger in (".git", "notes.txt"):  # hidden or not, beside a finished export
        (tmp_path / "out" / stranger).touch()
        with pytest.raises(RunError, match=naming(tmp_path / "out", stranger)):
            export().write(tmp_path / "out")
        (tmp_path / "out" / stranger).unlink()
    assert export().write(tmp_path / "out") == (0, 6)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".secret").touch()
    with pytest.raises(RunError, match=naming(tmp_path / "hidden", ".secret")):
        export().write(tmp_path / "hidden")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(export, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(RunError, match=naming("--out 40 80 KiB 1000 --count --draws")):
        export().write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_record_that_promises_a_thousand_million_shards_ends_at_the_first_that_is_missing(export, tmp_path):
    export().write(tmp_path)
    about = json.loads((tmp_path / PROVENANCE).read_text())
    (tmp_path / PROVENANCE).write_text(json.dumps({**about, "count": 10**9, "shard_size": 1}))
    with pytest.raises(RunError, match=naming("00003.csv 4 2,000,000,000 dscm.export")):
        open_export(tmp_path)


def test_another_models_images_are_not_mixed_in(export, model, tmp_path):
    export().write(tmp_path)
    weight = next(model[0].image.parameters())
    old = weight.detach().clone()
    try:
        weight.data.add_(1e-3)
        with pytest.raises(RunError, match=naming(tmp_path, "weights")):
            export().write(tmp_path)
    finally:
        weight.data.copy_(old)
    assert export().write(tmp_path) == (0, 6)


def test_other_values_under_the_same_label_are_not_mixed_in(export, tmp_path):
    made = export()
    made.write(tmp_path)
    moved = {label: {name: value + 1e-3 for name, value in do.items()} for label, do in made.interventions.items()}
    with pytest.raises(RunError, match=naming(tmp_path, "values")):
        replace(made, interventions=moved).write(tmp_path)
    beyond = {label: {name: torch.cat([value[:10], value[10:] + 1]) for name, value in do.items()}
              for label, do in made.interventions.items()}
    assert replace(made, interventions=beyond).write(tmp_path) == (0, 6)  # rows that are not exported do not matter


def test_values_of_an_intervention_do_not_depend_on_the_others(model):
    dataset = model[1]
    asked = ("intensity~marginal", "thickness~marginal", "thickness=2")
    alone, among = values_of(asked[1:2], dataset, "test", 0), values_of(asked, dataset, "test", 0)
    assert torch.equal(alone["thickness~marginal"]["thickness"], among["thickness~marginal"]["thickness"])
    assert not torch.equal(alone["thickness~marginal"]["thickness"],
                           values_of(asked, dataset, "test", 1)["thickness~marginal"]["thickness"])
    training = dataset.split("train").attributes
    rows = {name: [int((training[name] == v).nonzero()[0]) for v in among[f"{name}~marginal"][name]] for name in ("thickness", "intensity")}
    assert rows["thickness"] != rows["intensity"]  # each from a stream of its own


def _claim(out: str, seed: int, ready, told) -> None:
    ready.wait()
    try:
        claim(Path(out), {"seed": seed, "more": ["x"] * 1000})
        told.put((seed, ""))
    except RunError as error:
        told.put((seed, str(error)))


def test_two_claims_in_a_race(tmp_path):
    """One wins, the other is told, and nobody ever sees half a file."""
    context = multiprocessing.get_context("fork")
    for number in range(10):
        out, ready, told = tmp_path / str(number), context.Barrier(2), context.Queue()
        both = [context.Process(target=_claim, args=(str(out), seed, ready, told)) for seed in (1, 2)]
        for process in both:
            process.start()
        answers = dict(told.get(timeout=20) for _ in both)
        for process in both:
            process.join()
        winner = json.loads((out / PROVENANCE).read_text())["seed"]
        assert answers[winner] == "" and "other provenance (seed:" in answers[3 - winner]
        assert [path.name for path in out.iterdir()] == [PROVENANCE]


def test_the_loser_of_a_race_compares(tmp_path, monkeypatch):
    """The other process claims after this one has found nothing."""
    link = os.link

    def late(source, target):
        thread = threading.Thread(target=lambda: (monkeypatch.setattr(os, "link", link), claim(tmp_path, {"seed": 2})))
        thread.start()
        thread.join()
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(RunError, match=naming(tmp_path, "seed 2 1")):
        claim(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / PROVENANCE).read_text()) == {"seed": 2}


def test_kinds_come_from_the_graph(export, tmp_path):
    """A continuous attribute all of whose values are whole stays a float."""
    made = export(draws=None)
    replace(made, interventions={"both": {"thickness": torch.full((32,), 2.0), "intensity": torch.full((32,), 100.0)}}).write(tmp_path)
    found = open_export(tmp_path).attributes
    assert {name: value.dtype for name, value in found.items()} == {
        "digit": torch.int64, "thickness": torch.float32, "intensity": torch.float32}
    assert (found["thickness"] == 2).all() and found.keys() == {v.name for v in made.dataset.graph.attributes}


@pytest.mark.parametrize("form", ["pt", "npz", "png"])
def test_damage_is_noticed_and_mended(export, tmp_path, form):
    export(form=form).write(tmp_path)
    shard = tmp_path / export().folders[0] / "00001"
    table, images = shard.with_suffix(".csv"), shard.with_suffix(f".{form}") if form != "png" else next(shard.glob("*.png"))
    whole = table.read_text()

    def cut() -> None:
        images.unlink() if form == "png" else images.write_bytes(images.read_bytes()[:200])

    lines = whole.splitlines(keepends=True)
    for damage in (lambda: table.write_text("".join(lines[:-1])), lambda: table.write_text("".join(lines)[:-30]),
                   lambda: table.write_text(whole.replace("thickness", "weight", 1)), lambda: table.write_text(""),
                   lambda: table.write_text(whole.replace(",4,0,", ",four,0,")), cut):
        damage()
        with pytest.raises(RunError, match=naming(f"00001 {table} dscm.export")):
            open_export(tmp_path)
        table.write_text(whole)
    table.unlink()
    assert export(form=form).write(tmp_path) == (1, 5) and len(open_export(tmp_path)) == 40


@pytest.mark.parametrize("change, named", [
    ({"folders": "thickness"}, "folders str"), ({"count": None}, "count NoneType"), ({"count": -1}, "count -1"),
    ({"shard_size": 0}, "shard_size 0"), ({"draws": 0}, "draws 0"), ({"files": "exe"}, "files exe"), ({"shape": [1, -2, 3]}, "shape"),
    ({"folders": ["../other"]}, "'../other'"), ({"attributes": []}, "attributes list"), ({"truth": "yes"}, "truth str"),
    ({"split": 3}, "split int"), ({"count": 10**12}, "00002.csv 3 500,000,000,000")])
def test_a_damaged_record_is_refused(export, tmp_path, change, named):
    export(truth=False, draws=None, count=8).write(tmp_path)
    path = tmp_path / PROVENANCE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=naming(named)):
        open_export(tmp_path)


def test_what_cannot_be_written_or_read_is_said(export, tmp_path):
    export(truth=False).write(tmp_path / "out")
    assert open_export(tmp_path / "out").truth is None
    with pytest.raises(RunError, match=naming(tmp_path / PROVENANCE)):
        open_export(tmp_path)
    (tmp_path / PROVENANCE).write_text("[]")
    with pytest.raises(RunError, match=naming(tmp_path / PROVENANCE, "list")):
        open_export(tmp_path)
    shard = next((tmp_path / "out").rglob("*.pt"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RunError, match=naming(shard)):
        open_export(tmp_path / "out")


def test_truth_is_asked_for_where_there_is_one(model):
    dscm, dataset = model
    made = Export(dscm, dataset, "test", 4, values_of(("digit=3",), dataset, "test", 0), truth=True)
    with pytest.raises(RunError, match=naming("--truth morphomnist digit=3 thickness intensity")):
        made.check()


# ---------------------------------------------------------------------------------------------------- the command
def test_command(tiny_run, tmp_path, capsys):
    main(Options(tiny_run, DO, tmp_path / "out", count=5, truth=True, device="cpu"))
    assert "10 images of morphomnist's test split" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    dscm, _ = open_run(tiny_run, "cpu")
    assert about["do"] == list(DO) and about["weights"] == weights_hash(dscm) and about["options"]["train_digits"] == "96"
    assert len(open_export(tmp_path / "out")) == 10


@pytest.mark.parametrize(("changes", "told"), [
    ({"do": ()}, "--do"), ({"count": 99}, "--count 99 test 32"), ({"shard_size": 0}, "--shard-size 0"),
    ({"do": ("thickness=2", "thickness=2")}, "--do thickness=2"),
    ({"do": ("thickness=2", "thickness=2.0")}, "--do thickness=2.0 thickness=2"),
    ({"draws": 0}, "--draws 0"),
    ({"do": ("thickness+=1,1e0",)}, "--do thickness+=1e0 thickness+=1"), ({"draws": 10**9}, "--draws 1000000000"),
    ({"do": ("colour=2",)}, "'colour' thickness digit intensity"), ({"temperature": -1.0}, "--temperature -1.0"),
])
def test_bad_input(tiny_run, tmp_path, changes, told):
    with pytest.raises(ValueError, match=naming(told)):
        main(Options(**{"run": tiny_run, "do": DO, "out": tmp_path / "out", "device": "cpu"} | changes))
    assert not (tmp_path / "out").exists()


def test_two_processes(tiny_run, tmp_path):
    flags = ["--run", str(tiny_run), "--do", "thickness~marginal", "--draws", "2", "--count", "9", "--shard-size", "2", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dscm.export", "--"]
    done = subprocess.run([*launch, *flags, "--out", str(tmp_path / "two")], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("18 images of") == 1
    main(Options(tiny_run, ("thickness~marginal",), tmp_path / "one", draws=2, count=9, shard_size=2, device="cpu"))
    assert torch.equal(open_export(tmp_path / "two").images, open_export(tmp_path / "one").images)
