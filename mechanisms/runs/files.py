"""Files of a run: written whole or not at all, read without executing anything, refused with a reason.

A file of tensors ends in the SHA-256 of all that comes before it: as the comment of the ZIP archive that torch writes, so that
the two are one file, renamed into place together, and ``torch.load`` reads it as it reads any other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, BinaryIO, TypeVar

import torch

from datasets.errors import UserError
from datasets.files.atomic import temporary_beside

FORMAT = 1
_AT_ONCE, _LONGEST = 1 << 20, 300  # bytes that are hashed at once; letters of a reason
Module = TypeVar("Module", bound=torch.nn.Module)


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
    temporary = None
    try:
        temporary = temporary_beside(path)
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a failed write as a RuntimeError of its archive writer
        if isinstance(error, RuntimeError) and not any(w in str(error) for w in ("PytorchStreamWriter", "write", "unexpected pos")):
            raise
        kept = "; the earlier file is kept" if path.exists() else ""
        raise RunError(f"cannot write {path}: {error}{kept}. Free some space or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


_MARK, _DIGEST = b"otherwise-sha256:", 64  # before the digest, and its length in hexadecimal letters
_REMEDY = "Restore a copy of it, or remove it and give the command that made it again"
_NO_COMMENT = b"\0\0"  # the length of a ZIP archive's comment: the last thing in one without


def damaged(path: Path, why: object, remedy: str = "") -> RunError:
    """The refusal of a file that cannot be what this version wrote."""
    return RunError(f"{path} is damaged or from another version: {why}. {remedy or _REMEDY}")


@contextmanager
def understanding(path: Path, remedy: str = "") -> Iterator[None]:
    """Around code that makes something of what the file ``path`` held: what does not fit there is the file's fault.

    Raises:
        RunError: for a key that lacks, a value of another type or size, weights of another shape.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError, RuntimeError) as error:
        if isinstance(error, RunError):  # which names its file already
            raise
        text = " ".join(str(error).split())
        reason = f"it lacks {error}" if isinstance(error, KeyError) else text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        raise damaged(path, reason or type(error).__name__, remedy) from error


def rebuilt(path: Path, build: Callable[[], Module], weights: Mapping[str, torch.Tensor] | None, remedy: str = "") -> Module:
    """``build()`` with the ``weights`` that the file ``path`` holds; built without memory first, to see that they fit.

    Raises:
        RunError: for weights of other names or shapes, before anything of their size is allocated.
    """
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise damaged(path, "it lacks weights", remedy)
    with understanding(path, remedy):
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in build().state_dict().items()}
        held = {name: tuple(value.shape) for name, value in weights.items()}
        if apart := [name for name in {**wanted, **held} if wanted.get(name) != held.get(name)]:
            name = apart[0]
            raise damaged(path, f"its weights do not fit what it describes ({name}: {held.get(name, 'none')} there, "
                                f"{wanted.get(name, 'none')} due)", remedy)
        module = build()
        module.load_state_dict(weights)
    return module


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) atomically, with format, versions and a hash, so that it describes itself."""
    with replacing(path) as temporary, open(temporary, "w+b") as file:
        torch.save({"format": FORMAT, "versions": versions(), **state}, file)
        seal(file)
        file.flush()
        os.fsync(file.fileno())


def seal(file: BinaryIO) -> None:
    """Append the hash of a ZIP archive to it, as its comment."""
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    if file.read() != _NO_COMMENT:
        raise ValueError("this archive has a comment already")
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write((len(_MARK) + _DIGEST).to_bytes(2, "little") + _MARK)
    file.write(_digest(file, file.tell()))


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first ``size`` bytes, in hexadecimal; leaves the file at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (part := file.read(min(size, _AT_ONCE))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def _check_seal(file: BinaryIO, path: Path) -> None:
    """Raises RunError for a file whose content is not that of which it holds the hash, or that holds none."""
    size = os.fstat(file.fileno()).st_size - _DIGEST
    file.seek(max(0, size - len(_MARK)))
    if file.read(len(_MARK)) != _MARK:
        raise RunError(f"{path} is truncated, or not a checkpoint of ours or of an older version: it does not end in the hash of its "
                       f"content. {_REMEDY}")
    found = file.read()
    if _digest(file, size) != found:
        raise damaged(path, "its content is not what its hash says")
    file.seek(0)


def load(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read what :func:`save` wrote, on the CPU, with ``weights_only=True``, once its hash is found right.

    Raises:
        RunError: if it is missing, damaged in a single bit, foreign, of another format or of another ``kind``.
    """
    try:
        with open(path, "rb") as file:
            _check_seal(file, path)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise RunError(f"{path} does not exist") from None
    except UserError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}. Mend that, or choose another --run") from error
    except Exception as error:  # what a foreign archive or pickle makes torch raise has no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damaged(path, f"not a checkpoint of ours ({reason})") from error
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


Keys = Mapping[str, type | tuple[type, ...]]  # of a JSON object → the type of each value


def read_json(path: Path, keys: Keys | None = None, remedy: str = "") -> Any:
    """What a JSON file holds; with ``keys``, an object that has at least these.

    Raises:
        RunError: if it is missing, unreadable, no JSON, or lacks a key or has a value of another type there.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}. Mend that, or choose another folder") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else error
        raise damaged(path, f"it cannot be read ({why})", remedy) from error
    if keys is not None and (wrong := _unlike(value, keys)):
        raise damaged(path, wrong, remedy)
    return value


def _unlike(value: Any, keys: Keys) -> str:
    """What keeps ``value`` from being an object with these keys; empty if nothing does."""
    if not isinstance(value, dict):
        return f"it holds a {type(value).__name__}, not an object"
    if absent := [key for key in keys if key not in value]:
        return f"it lacks {', '.join(absent)}"
    wrong = [f"{key} is a {type(value[key]).__name__}" for key, kind in keys.items() if not isinstance(value[key], kind)]
    return ", ".join(wrong)


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
    def read(path: Path, keys: Keys = MappingProxyType({"step": int})) -> list[dict[str, Any]]:
        """All complete rows, each with these keys; a last line that a kill cut in two is left out.

        Raises:
            RunError: for a row that is anything else.
        """
        try:
            lines = path.read_bytes().splitlines() if path.exists() else []
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}. Mend that, or choose another folder") from error
        rows, remedy = [], "Restore a copy of it, or remove it and give the training command again with --resume"
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    continue
                raise damaged(path, f"line {number} cannot be read ({type(error).__name__})", remedy) from error
            if wrong := _unlike(rows[-1], keys):
                raise damaged(path, f"line {number}: {wrong}", remedy)
        return rows

    @classmethod
    def last(cls, path: Path) -> dict[str, Any]:
        """The last row of a training, with ``step``, ``seconds`` and ``valid``; raises RunError where there is none."""
        if not (rows := cls.read(path, {"step": int, "seconds": (int, float), "valid": dict})):
            raise damaged(path, "it has no rows", "Restore a copy of it, or train anew with --overwrite")
        return rows[-1]


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
