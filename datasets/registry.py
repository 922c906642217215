"""From a name or a path to a data set: ``open_dataset("morphomnist")``, ``open_dataset("my_scm.py")``."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.base import CausalDataset
from datasets.errors import valid_are
from datasets.ranges import check_field
from datasets.schema import SchemaError
from datasets.words import convert

_REGISTRY: dict[str, type[CausalDataset]] = {}
_SEARCHED: set[str] = set()  # folders of users' files, whose modules they import


def register(cls: type[CausalDataset]) -> type[CausalDataset]:
    """Class decorator: makes ``--dataset cls.name`` known."""
    if not cls.name:
        raise SchemaError(f"{cls.__name__} needs a name to be registered")
    _REGISTRY[cls.name] = cls
    return cls


def names() -> list[str]:
    """All registered names; every file of this folder and of its sub-folders is looked at."""
    for module in pkgutil.walk_packages(datasets.__path__, "datasets."):
        importlib.import_module(module.name)
    return sorted(_REGISTRY)


def open_dataset(name: str, options: Mapping[str, object] | None = None) -> CausalDataset:
    """A registered data set, or the one that a user's file defines, with its options set.

    Args:
        name: a registered name or the path of a Python file that defines one subclass of :class:`CausalDataset`.
        options: field → value; strings are converted to the field's type.

    Raises:
        SchemaError: for an unknown name or option; the message lists the valid ones.
    """
    if name.endswith(".py"):
        cls = _from_file(Path(name))
    elif name in names():
        cls = _REGISTRY[name]
    else:
        raise SchemaError(f"unknown data set {name!r}; {valid_are(names(), name)}, or the path of your own file ending in .py")
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in (options or {}).items():
        key = key.replace("-", "_")
        if key not in fields:
            raise SchemaError(f"data set {name!r} has no option {key!r}; {valid_are(fields, key)}")
        values[key] = convert(value, hints[key], f"{name}: {key}={value}", SchemaError)
        check_field(cls, key, values[key], lambda option, refused: f"{name}: {option}={refused}", SchemaError)
    dataset = cls(**values)
    dataset.schema  # noqa: B018  (checks the graph at once)
    return dataset


def _from_file(path: Path) -> type[CausalDataset]:
    if not path.is_file():
        raise SchemaError(f"data set file {path} does not exist")
    module_name = f"_otherwise_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    with _beside(path.resolve().parent):
        spec.loader.exec_module(module)
    found = [c for c in vars(module).values()
             if isinstance(c, type) and issubclass(c, CausalDataset) and c.__module__ == module_name]
    if len(found) != 1:
        listed = ", ".join(c.__name__ for c in found) or "none"
        raise SchemaError(f"{path} must define exactly one subclass of CausalDataset; found {listed}")
    return found[0]


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules beside a user's file can be imported, as when it is run as a script; later too, when its images are read.

    """
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
        if (place := _place(sys.modules[top])) is not None and place not in known | {folder}:
            for name in [name for name in sys.modules if name.split(".")[0] == top]:
                del sys.modules[name]


def _place(module: types.ModuleType) -> Path | None:
    """The folder in which a top-level module or package was found."""
    if not (file := getattr(module, "__file__", None)):
        return None
    path = Path(file).resolve()
    return path.parent.parent if path.name == "__init__.py" else path.parent
