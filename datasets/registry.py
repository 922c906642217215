"""From a name or a path to a data set: ``open_dataset("morphomnist")``, ``open_dataset("my_scm.py")``."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import sys
import typing
from collections.abc import Mapping
from pathlib import Path

import datasets
from datasets.base import CausalDataset
from datasets.errors import valid_are
from datasets.ranges import check_field
from datasets.schema import SchemaError
from datasets.words import convert

_REGISTRY: dict[str, type[CausalDataset]] = {}


def register(cls: type[CausalDataset]) -> type[CausalDataset]:
    """Class decorator: makes ``--dataset cls.name`` known."""
    if not cls.name:
        raise SchemaError(f"{cls.__name__} needs a name to be registered")
    _REGISTRY[cls.name] = cls
    return cls


def names() -> list[str]:
    """All registered names; every file of this folder is looked at."""
    for module in pkgutil.iter_modules(datasets.__path__):
        importlib.import_module(f"datasets.{module.name}")
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
    spec.loader.exec_module(module)
    found = [c for c in vars(module).values()
             if isinstance(c, type) and issubclass(c, CausalDataset) and c.__module__ == module_name]
    if len(found) != 1:
        listed = ", ".join(c.__name__ for c in found) or "none"
        raise SchemaError(f"{path} must define exactly one subclass of CausalDataset; found {listed}")
    return found[0]
