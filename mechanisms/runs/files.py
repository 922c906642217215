"""Files of a run: written whole or not at all, read without executing anything, refused with a reason."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

from datasets.errors import UserError

FORMAT = 1


class RunError(UserError):
    """A run folder, checkpoint or training that cannot be used; the message names it and the remedy."""


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "pyro-ppl", "numpy")}}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place if the body succeeds; otherwise ``path`` stays as it was.

    Raises:
        RunError: if the place cannot be written or the disk is full; an earlier file is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError of its archive writer
        if isinstance(error, RuntimeError) and not any(w in str(error) for w in ("PytorchStreamWriter", "write", "unexpected pos")):
            raise
        kept = "; the earlier file is kept" if path.exists() else ""
        raise RunError(f"cannot write {path}: {error}{kept}. Free some space or choose another place") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) atomically, with format and versions, so that it describes itself."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, "versions": versions(), **state}, file)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read what :func:`save` wrote, on the CPU, with ``weights_only=True``.

    Raises:
        RunError: if it is missing, truncated, foreign, of another format or of another ``kind``.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged archive or pickle makes torch raise has no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is truncated, or not a checkpoint of ours ({reason})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise RunError(f"{path} is a foreign file: it carries no format mark of ours")
    if state["format"] != FORMAT:
        raise RunError(f"{path} has format {state['format']}; this version reads {FORMAT}")
    if kind is not None and state.get("kind") != kind:
        raise RunError(f"{path} holds a {state.get('kind')!r}, not a {kind!r}")
    return state


def check_finite(module: torch.nn.Module, path: Path, remedy: str) -> None:
    """Raises RunError for weights that are not finite, naming the first such tensor of the file ``path``."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            wrong = int((~torch.isfinite(tensor)).sum())
            raise RunError(f"{path}: {wrong} of {tensor.numel()} values of {name} are not finite; its training has diverged. {remedy}, or "
                           "restore an earlier copy")


def weights_fingerprint(*modules: torch.nn.Module) -> str:
    """A hash of all parameters and buffers, in this order of modules; with the same one they compute the same."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Held by one process at a time: who comes second waits, and finds what the first has written.

    Args:
        path: an empty file in the folder that is written to; the folder is made.

    Raises:
        RunError: where nothing can be written there.
    """
    with _opened(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> IO[str]:
    """A file to lock, held open for as long as the lock is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w")
    except OSError as error:
        raise RunError(f"cannot write into {path.parent}: {error}. Choose another --run") from error


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


class MetricsLog:
    """``metrics.jsonl``: one JSON object a line. On resume, what a lost stretch had written is cut off."""

    def __init__(self, path: Path, keep_steps: int = 0) -> None:
        self.path = path
        kept = [row for row in self.read(path) if row["step"] <= keep_steps] if keep_steps else []
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error}. Free some space; --resume then continues") from error

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """All complete rows; a last line that a kill cut in two is left out."""
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for one training; the lock goes with the process, however that ends.

    Raises:
        RunError: if another process trains into it, or it cannot be written.
    """
    with _opened(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another training is writing into {folder}; wait for it, or choose another --run") from None
        for left in folder.glob(".*.tmp"):  # by a training that was killed while it wrote
            left.unlink(missing_ok=True)
        yield
