"""A user's own Python file: run as his, its errors told with his own line, torch's settings left as they were."""

from __future__ import annotations

import importlib.util
import linecache
import re
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from datasets.errors import UserError
from datasets.schema import SchemaError

PREFIX = "_otherwise_"  # of the names of users' modules
_UNALLOCATED = re.compile(r"allocate|out of memory", re.IGNORECASE)


def run_file(path: Path) -> ModuleType:
    """The module of a user's file.

    Raises:
        SchemaError: for a file that is not there or cannot be run; the message shows the user's own line.
    """
    if not path.is_file():
        raise SchemaError(f"data set file {path} does not exist")
    name = f"{PREFIX}{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"  # files of one name lie in several folders
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with told_as_theirs(path, "it cannot be run"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def told_as_theirs(path: Path | None, what: str) -> Iterator[None]:
    """What fails inside is told in one line that shows the user's own; torch's settings are restored in any case.

    Args:
        path: the user's file; None for code of ours, whose errors pass as they are unless memory is too small.
        what: where it happened, for the message.

    Raises:
        SchemaError: instead of any exception but ours, and for what does not fit in memory.
    """
    with settings_kept():
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            if _too_large(error):
                raise SchemaError(f"{what}: it does not fit in memory ({_one_line(error)}). Take fewer rows, uint8 images, or read "
                                  "images one by one, see datasets.ImageFiles") from error
            if path is None:
                raise
            raise SchemaError(f"{_place(path, error)}: {what}: {type(error).__name__}: {_one_line(error)}") from error


@contextmanager
def settings_kept() -> Iterator[None]:
    """Whether gradients are recorded, torch's default type and device are afterwards what they were before."""
    gradients, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)


def _too_large(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(_UNALLOCATED.search(str(error)))


def _one_line(error: BaseException) -> str:
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(str(words).split()) or "no more is said"


def _place(path: Path, error: BaseException) -> str:
    """``file, line 12 (`source`)`` of the innermost line of the user's file, if it came that far."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        number = error.lineno
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        number = frames[-1].lineno if frames else None
    if number is None:
        return str(path)
    linecache.checkcache(str(path))
    source = linecache.getline(str(path), number).strip()
    return f"{path}, line {number}" + (f" (`{source}`)" if source else "")
