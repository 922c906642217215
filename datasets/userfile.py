"""A user's own Python file: run as his, its errors told with his own line, torch's settings left as they were."""

from __future__ import annotations

import importlib.util
import linecache
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from datasets.errors import UserError, did_you_mean
from datasets.schema import SchemaError

PREFIX = "_otherwise_"  # of the names of users' modules
_SEARCHED: set[str] = set()  # folders of users' files, whose modules they import
_UNALLOCATED = re.compile(r"allocate|out of memory", re.IGNORECASE)


def run_file(path: Path, what: str = "data set file", error: type[UserError] = SchemaError) -> ModuleType:
    """The module of a user's file.

    Args:
        what: the file is, for messages.
        error: what is raised.

    Raises:
        UserError: for a file that is not there or cannot be run; the message shows the user's own line.
    """
    if not path.is_file():
        raise error(f"{what} {path} does not exist")
    name = f"{PREFIX}{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"  # files of one name lie in several folders
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise error(f"{what} {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with told_as_theirs(path, "it cannot be run", error), beside(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def split_spec(spec: str) -> tuple[Path, str]:
    """``"folder/file.py:build"`` → path and name; the name is empty where none is given."""
    head, separator, name = spec.rpartition(":")
    return (Path(head), name) if separator and head.endswith(".py") else (Path(spec), "")


def callable_of(path: Path, name: str, what: str, error: type[UserError] = SchemaError) -> Callable[..., Any]:
    """The function or class ``name`` of a user's file, which is run.

    Raises:
        UserError: see :func:`run_file`; for a name that the file has not, or that cannot be called: those that it has are listed.
    """
    module = run_file(path, what, error)
    if not callable(found := getattr(module, name, None)):
        theirs = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise error(f"{path} has no function {name!r}; it has {', '.join(theirs) or 'none'}{did_you_mean(theirs, name)}")
    return found


@contextmanager
def told_as_theirs(path: Path | None, what: str, error: type[UserError] = SchemaError) -> Iterator[None]:
    """What fails inside is told in one line that shows the user's own; torch's settings are restored in any case.

    Args:
        path: the user's file; None for code of ours, whose errors pass as they are unless memory is too small.
        what: where it happened, for the message.
        error: what is raised.

    Raises:
        UserError: instead of any exception but ours, and for what does not fit in memory.
    """
    with settings_kept():
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as caught:
            if _too_large(caught):
                raise error(f"{what}: it does not fit in memory ({_one_line(caught)}). Take fewer rows, uint8 images, or read "
                            "images one by one, see datasets.ImageFiles") from caught
            if path is None:
                raise
            raise error(f"{_place(path, caught)}: {what}: {type(caught).__name__}: {_one_line(caught)}") from caught


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


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Modules beside a user's file can be imported, as when it is run as a script; later too, when its images are read."""
    forget_others(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:  # from now on behind everything else, what is named like a module of ours must not hide it, but before other users' files
        sys.path.remove(str(folder))
        if str(folder) in _SEARCHED:
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.insert(min((sys.path.index(place) for place in _SEARCHED & set(sys.path)), default=len(sys.path)), str(folder))
            _SEARCHED.add(str(folder))


def forget_others(folder: Path) -> None:
    """Forget modules that other users' files imported, of the names of those in ``folder``: each file has its own beside it."""
    known = {Path(place).resolve() for place in sys.path if place not in _SEARCHED}
    mine = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    for top in (mine - {"__main__"}) & set(sys.modules):
        if (place := _folder_of(sys.modules[top])) is not None and place not in known | {folder}:
            for name in [name for name in sys.modules if name.split(".")[0] == top]:
                del sys.modules[name]


def _folder_of(module: ModuleType) -> Path | None:
    """The folder in which a top-level module or package was found."""
    if not (file := getattr(module, "__file__", None)):
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent
