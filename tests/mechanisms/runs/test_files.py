"""Files of a run: whole or absent, never executed, refused with a reason; one training to a folder."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mechanisms.runs import files as checkpoint
from mechanisms.runs.files import MetricsLog, RunError, load, locked, read_json, save, write_json

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


class Bomb:
    """Unpickled without care, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_nothing_in_a_file_is_executed(tmp_path, write):
    with open(tmp_path / "checkpoint.pt", "wb") as file:
        write({"format": checkpoint.FORMAT, "bomb": Bomb(tmp_path / "exploded")}, file)
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
    with pytest.raises(RunError, match=message):
        load(tmp_path / "checkpoint.pt", "toy")


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
    with pytest.raises(RunError, match="x.json cannot be read"):
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
