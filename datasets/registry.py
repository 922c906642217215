"""From a name or a path to a data set: ``open_dataset("morphomnist")``, ``open_dataset("my_scm.py")``."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import typing
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets.base import CausalDataset, apart
from datasets.errors import valid_are
from datasets.ranges import check_field
from datasets.schema import SchemaError
from datasets.userfile import run_file, told_as_theirs
from datasets.words import convert

_REGISTRY: dict[str, type[CausalDataset]] = {}


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


def open_dataset(name: str | os.PathLike[str], options: Mapping[str, object] | None = None) -> CausalDataset:
    """A registered data set, or the one that a user's file defines, with its options set.

    Args:
        name: a registered name or the path of a Python file that defines one subclass of :class:`CausalDataset`.
        options: field → value; strings are converted to the field's type.

    Raises:
        SchemaError: for an unknown name or option; the message lists the valid ones.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise SchemaError(f"data set {name!r} is a {type(name).__name__}; {valid_are(names(), '')}, or the path of your own file "
                          "ending in .py")
    name = os.fspath(name)
    path = Path(name) if name.endswith(".py") else None
    if path is not None:
        cls = _from_file(path)
    elif name in names():
        cls = _REGISTRY[name]
    else:
        raise SchemaError(f"unknown data set {name!r}; {valid_are(names(), name)}, or the path of your own file ending in .py")
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    hints, values = typing.get_type_hints(cls), {}
    named, quoted = apart(name, cls), apart(repr(name), cls)
    for key, value in (options or {}).items():
        key = key.replace("-", "_")
        if key not in fields:
            raise SchemaError(f"data set {quoted} has no option {key!r}; {valid_are(fields, key)}")
        values[key] = convert(value, hints[key], f"{named}: {key}={value}", SchemaError)
        check_field(cls, key, values[key], lambda option, refused: f"{named}: {option}={refused}", SchemaError)
    needed = [f.name for f in fields.values() if f.init and f.name not in values
              and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if needed:
        raise SchemaError(f"data set {quoted} needs the option{'s' * (len(needed) > 1)} {', '.join(needed)}: --option {needed[0]}=…, "
                          "or give it a default value in the file")
    with told_as_theirs(path, f"{cls.__name__} cannot be made"):
        dataset = cls(**values)
        dataset.schema  # noqa: B018  (checks the graph at once)
    return dataset


def _from_file(path: Path) -> type[CausalDataset]:
    module = run_file(path)
    found = [c for c in vars(module).values()
             if isinstance(c, type) and issubclass(c, CausalDataset) and c.__module__ == module.__name__]
    if len(found) != 1:
        listed = ", ".join(c.__name__ for c in found) or "none"
        raise SchemaError(f"{path} must define exactly one subclass of CausalDataset; found {listed}")
    return found[0]
