"""The image mechanisms there are, by name, and how one is rebuilt from its file.

Every file of this folder is looked at: a new mechanism is one new file with a subclass of :class:`mechanisms.image.base.ImageMechanism`
that has a ``name``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import mechanisms.image
from datasets.errors import UserError, valid_are
from datasets.schema import Graph
from mechanisms.image.base import ImageMechanism
from mechanisms.runs.files import RunError, check_finite, load, rebuilt

FOLDER = "image"


@cache
def image_mechanisms() -> dict[str, type[ImageMechanism]]:
    """Name → class, of all files of this folder."""
    classes: dict[str, type[ImageMechanism]] = {}
    for module in pkgutil.iter_modules(mechanisms.image.__path__, "mechanisms.image."):
        if module.name == __name__:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, ImageMechanism) and value.name:
                classes[value.name] = value
    return dict(sorted(classes.items()))


def image_mechanism(name: str) -> type[ImageMechanism]:
    """The class of that name.

    Raises:
        UserError: for an unknown name; the valid ones are listed.
    """
    if name not in (known := image_mechanisms()):
        raise UserError(f"unknown image mechanism {name!r}; {valid_are(known, name)}")
    return known[name]


def build(name: str, graph: Graph, config: Any = None) -> ImageMechanism:
    """A new image mechanism.

    Args:
        config: of the class's ``settings``; its defaults if None.

    Raises:
        UserError: for an unknown name; for settings of another mechanism.
    """
    kind = image_mechanism(name)
    if config is not None and not isinstance(config, kind.settings):
        raise UserError(f"the image mechanism {name!r} takes settings of {kind.settings.__name__}, not of {type(config).__name__}")
    return kind(graph, config)


def describe(model: ImageMechanism) -> dict[str, Any]:
    """Plain values that rebuild ``model``; stored with its weights."""
    return {"kind": model.name, "graph": model.graph.to_dict(), "config": asdict(model.config)}


def image_mechanism_of(state: Mapping[str, Any], where: str) -> type[ImageMechanism]:
    """The class of the mechanism that :func:`describe` described.

    Raises:
        RunError: for another kind of file.
    """
    if state.get("kind") not in (known := image_mechanisms()):
        raise RunError(f"{where} holds a {state.get('kind')!r}; image mechanisms are {', '.join(known)}")
    return known[state["kind"]]


def load_image_mechanism(path: Path) -> ImageMechanism:
    """The mechanism that ``mechanisms.train`` left in a run folder, in eval mode; settings younger than it take their defaults.

    Raises:
        RunError: for a file that cannot be read, or weights that are not finite.
    """
    state = load(path)
    kind = image_mechanism_of(state, str(path))
    model = rebuilt(path, lambda: kind(Graph.from_dict(state["graph"]), kind.settings(**state["config"])), state.get("weights"))
    check_finite(model, path, "Train it anew with a smaller --learning-rate")
    return model.eval()
