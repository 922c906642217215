"""Files of a run: whole or absent, never executed, refused with a reason; one training to a folder."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from datasets.files.atomic import temporary_beside
from mechanisms.runs import files as checkpoint
from mechanisms.runs.files import MetricsLog, RunError, load, locked, read_json, rebuilt, save, seal, write_json

STATE = {"kind": "toy", "weights": {"w": torch.arange(50_000.0)}, "config": {"widths": (8, 16), "name": None}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoint.pt", STATE)
    return tmp_path / "checkpoint.pt"


def assert_intact(path: Path) -> None:
    """The file is what :data:`STATE` was saved as, and it is alone in its folder."""
    assert torch.equal(load(path, "toy")["weights"]["w"], STATE["weights"]["w"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_is_saved_describes_itself(saved):
    state = load(saved)
    assert state["format"] == checkpoint.FORMAT and state["versions"]["torch"] == version("torch")
    assert state["config"] == STATE["config"]
    assert_intact(saved)


# ---------------------------------------------------------------------------------------------------- refused files
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match="checkpoint.pt is truncated, or not a checkpoint of ours"):
        load(saved)


@pytest.mark.parametrize("content", [
    b"hello", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00.", b"\x80\x04garbage", b"(", b"\x89PNG\r\n", b"{}",
])
def test_foreign_content_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(RunError, match="checkpoint.pt is (truncated|a foreign file)"):
        load(saved)


def test_a_single_flipped_bit_anywhere_is_refused(saved):
    """Of the archive, of its directory, of the hash itself; the file is left for whoever restores it."""
    content = saved.read_bytes()
    places = [*range(0, 8 * len(content), 100_003), *range(8 * len(content) - 8 * 120, 8 * len(content))]
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        saved.write_bytes(flipped)
        with pytest.raises(RunError, match=rf"{saved} is .*(Restore a copy of it|remove it)"):
            load(saved, "toy")
    assert len(places) > 900 and saved.read_bytes() == bytes(flipped)


@pytest.mark.parametrize("change", [
    lambda content: content + b"\0", lambda content: b"\0" + content, lambda content: content * 2,
    lambda content: content[:-64] + b"0" * 64,
    lambda content: content[:-64] + content[-64:].upper(), lambda content: content[-64:], lambda content: content[:100] + content[101:],
], ids=["byte after", "byte before", "twice", "hash of zeros", "upper case", "hash alone", "byte lost"])
def test_other_damage_is_refused(saved, change):
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(RunError, match=rf"{saved} is (damaged|truncated)"):
        load(saved)


def test_a_file_without_its_hash_is_refused_and_one_with_it_is_torch_s(saved):
    assert torch.equal(torch.load(saved, weights_only=True)["weights"]["w"], STATE["weights"]["w"])
    torch.save({"format": checkpoint.FORMAT, **STATE}, saved)
    with pytest.raises(RunError, match="older version: it does not end in the hash of its content. Restore .* remove it"):
        load(saved)


def sealed(path: Path) -> None:
    """Give a file of another hand the hash that ours have."""
    with open(path, "r+b") as file:
        seal(file)


class Bomb:
    """Unpickled without care, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write, hashed", [(pickle.dump, False), (torch.save, False), (torch.save, True)])
def test_nothing_in_a_file_is_executed(tmp_path, write, hashed):
    with open(tmp_path / "checkpoint.pt", "wb") as file:
        write({"format": checkpoint.FORMAT, "bomb": Bomb(tmp_path / "exploded")}, file)
    if hashed:
        sealed(tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match="not a checkpoint of ours"):
        load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("state, message", [
    ({"state_dict": {"w": torch.ones(3)}}, "foreign file: it carries no format mark"),
    ([1, 2], "foreign file"),
    (torch.ones(3), "foreign file"),
    ({"format": 99}, "has format 99; this version reads 1"),
    ({"format": checkpoint.FORMAT, "kind": "attributes"}, "holds a 'attributes', not a 'toy'"),
    ({"format": checkpoint.FORMAT}, "holds a None, not a 'toy'"),
])
def test_other_checkpoints_are_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "checkpoint.pt")
    sealed(tmp_path / "checkpoint.pt")
    with pytest.raises(RunError, match=message):
        load(tmp_path / "checkpoint.pt", "toy")


# ---------------------------------------------------------------------------------------------------- what dead processes leave
def test_what_a_dead_process_has_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = temporary_beside(tmp_path / "elsewhere" / "x").name.split(".")[2]
    mine = threading.Thread(target=threading.Event().wait, daemon=True)
    mine.start()
    stay = [f".run.json.{host}.{os.getppid()}-1.tmp", f".run.json.{host}.{os.getpid()}-{mine.ident}.tmp", ".run.json.another.3-1.tmp",
            ".own.tmp", "run.tmp", f".x.y.{host}.words.tmp"]
    go = [f".run.json.{host}.{dead.pid}-1.tmp", f".a.b.c.{host}.{dead.pid}-77.tmp", f".run.json.{host}.{os.getpid()}-1.tmp"]
    for name in (*stay, *go):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "config.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {*stay, "config.json", "elsewhere"}
    (tmp_path / go[0]).write_text("half")
    write_json(tmp_path / "config.json", {})  # a folder is looked through once: it may hold very many files
    assert (tmp_path / go[0]).exists()


# ---------------------------------------------------------------------------------------------------- what does not fit
def layer(outputs: int) -> torch.nn.Module:
    return torch.nn.Linear(4, outputs)


@pytest.mark.parametrize("weights, outputs, named", [
    ({}, 3, r"weight: none there, \(3, 4\) due"),
    ({"weight": torch.ones(3, 4), "bias": torch.ones(3), "more": torch.ones(1)}, 3, r"more: \(1,\) there, none due"),
    ({"weight": torch.ones(3, 4), "bias": torch.ones(4)}, 3, r"bias: \(4,\) there, \(3,\) due"),
    ({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, 10**12, r"weight: \(3, 4\) there, \(1000000000000, 4\) due"),
    (None, 3, "it lacks weights"), ([1], 3, "it lacks weights"), ({"weight": 1}, 3, "it lacks weights"),
    ({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, "wide", "str"),
], ids=["none", "more", "other shape", "absurd size", "absent", "list", "number", "other type"])
def test_weights_that_do_not_fit_are_refused_before_memory_is_taken(tmp_path, weights, outputs, named):
    path = tmp_path / "mechanism.pt"
    with pytest.raises(RunError, match=f"{path} is damaged or from another version: .*{named}.*Give the command again"):
        rebuilt(path, lambda: layer(outputs), weights, "Give the command again")


def test_weights_that_fit_are_taken(tmp_path):
    weights = layer(3).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in rebuilt(tmp_path, lambda: layer(3), weights).state_dict().items())


def test_missing_file_is_refused(tmp_path):
    for path in (tmp_path / "checkpoint.pt", tmp_path):
        with pytest.raises(RunError, match=f"{path} does not exist"):
            load(path)


# ---------------------------------------------------------------------------------------------------- failing writes
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*_: object, **__: object) -> None:
    raise FULL


def torch_fails(state: object, file) -> None:
    """As torch does it: some bytes, then an error of its archive writer's own."""
    file.write(b"PK")
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("place, failure", [
    ((torch, "save"), fail), ((torch, "save"), torch_fails), ((os, "fsync"), fail), ((os, "replace"), fail),
], ids=["write", "torch", "fsync", "replace"])
def test_full_disk_keeps_the_earlier_checkpoint(saved, monkeypatch, place, failure):
    with monkeypatch.context() as patch, pytest.raises(RunError, match="cannot write .*checkpoint.pt.*the earlier file is kept. Free some"):
        patch.setattr(*place, failure)
        save(saved, {**STATE, "weights": {"w": torch.zeros(3)}})
    assert_intact(saved)


def test_full_disk_without_an_earlier_checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left") as caught:
        patch.setattr(os, "fsync", fail)
        save(tmp_path / "checkpoint.pt", STATE)
    assert "kept" not in str(caught.value) and not list(tmp_path.iterdir())


def test_real_limit_on_file_size_keeps_the_earlier_checkpoint(saved):
    program = f"""
        import resource, torch
        from pathlib import Path
        from mechanisms.runs.files import MetricsLog, RunError, save, write_json
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        folder = Path({str(saved.parent)!r})
        for write in (lambda: save(folder / "checkpoint.pt", {{"kind": "toy", "weights": torch.zeros(100_000)}}),
                      lambda: write_json(folder / "config.json", "x" * 100_000),
                      lambda: MetricsLog(folder / "metrics.jsonl").write({{"x": "x" * 100_000}})):
            try:
                write()
            except RunError as error:
                print(error)
        (folder / "metrics.jsonl").unlink()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    assert all(line.startswith("cannot write ") for line in lines) and "the earlier file is kept" in lines[0]
    assert_intact(saved)


def test_errors_of_the_program_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), checkpoint.replacing(tmp_path / "x.pt"):
        raise RuntimeError("shapes do not fit")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    run = tmp_path / "file" / "run"
    for action in (lambda: save(run / "checkpoint.pt", STATE), lambda: write_json(run / "config.json", {}), lambda: MetricsLog(run / "m")):
        with pytest.raises(RunError, match="cannot write .*(Not a directory|File exists).*another place"):
            action()
    with pytest.raises(RunError, match="cannot write into .*another"), locked(run):
        pass


# ---------------------------------------------------------------------------------------------------- lock
def test_one_training_to_a_folder(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(RunError, match="another training is writing into .*run; wait"), locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):  # free again
        pass


def test_half_written_file_of_a_killed_training_is_removed(saved):
    (saved.parent / ".checkpoint.pt.4711.tmp").write_bytes(b"half")
    with locked(saved.parent):
        assert sorted(p.name for p in saved.parent.iterdir()) == [".lock", "checkpoint.pt"]


# ---------------------------------------------------------------------------------------------------- JSON
def test_json_round_trip_and_damage(tmp_path):
    write_json(tmp_path / "a" / "x.json", {"path": Path("r"), "n": [1, 2.5, None]})
    assert read_json(tmp_path / "a" / "x.json") == {"path": "r", "n": [1, 2.5, None]}
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "x.json").write_bytes(b'{"a": \xff')
    with pytest.raises(RunError, match="x.json is damaged or from another version: it cannot be read"):
        read_json(tmp_path / "x.json")


def test_log_forgets_the_lost_stretch_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log.write({"step": step, "valid": {"loss": 1 / step}})
    path.write_text(path.read_text() + '{"step": 40, "val')
    assert [row["step"] for row in MetricsLog.read(path)] == [10, 20, 30]
    resumed = MetricsLog(path, keep_steps=20)
    resumed.write({"step": 25})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 25] and rows[1]["valid"]["loss"] == 1 / 20
    MetricsLog(path)
    assert path.read_text() == "" and MetricsLog.read(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("content, named", [
    (b"[" * 100_000 + b"]" * 100_000, "nested too deep"), (b'{"a": ' * 20_000 + b"1" + b"}" * 20_000, "nested too deep"),
    (b"", "cannot be read"),
    (b"\xff\xfe\x00", "utf-8"), (b"[1, 2]", "it holds a list"), (b'"text"', "it holds a str"), (b"null", "it holds a NoneType"),
    (b"{}", "it lacks name, graph"), (b'{"name": 3, "graph": []}', "name is a int, graph is a list"), (b"1" * 5000, "cannot be read"),
], ids=["list in list", "object in object", "empty", "no text", "list", "text", "null", "lacks", "other types", "absurd number"])
def test_a_record_that_is_none_is_refused(tmp_path, content, named):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=f"run.json is damaged or from another version: .*{named}.*Remove it"):
        read_json(tmp_path / "run.json", {"name": str, "graph": dict}, "Remove it")


@pytest.mark.parametrize("line, named", [
    (b"[1]", "it holds a list"), (b'{"loss": 1}', "it lacks step"), (b'{"step": "one"}', "step is a str"), (b"\xff", "cannot be read"),
    (b"[" * 100_000, "cannot be read"), (b'{"step": ', "cannot be read")])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line, named):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(RunError, match=f"metrics.jsonl is damaged or from another version: line 2.*{named}.*remove it"):
        MetricsLog.read(path)


def test_the_last_row_of_a_log(tmp_path):
    path, row = tmp_path / "metrics.jsonl", {"step": 3, "seconds": 1.5, "valid": {"loss": 2.0}}
    for content in ("", '{"step": 1}\n'):
        path.write_text(content)
        with pytest.raises(RunError, match="metrics.jsonl is damaged"):
            MetricsLog.last(path)
    path.write_text(json.dumps(row) + "\n" + '{"step": 4, "sec')
    assert MetricsLog.last(path) == row
