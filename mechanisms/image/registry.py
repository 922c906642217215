"""The image mechanisms there are, by name or from a user's file, and how one is rebuilt from its weights' file.

Every file of this folder is looked at: a new mechanism is one new file with a subclass of :class:`mechanisms.image.base.ImageMechanism`
that has a ``name``. A user's own file is named as ``FILE.py:build``, see :mod:`mechanisms.image.own`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import mechanisms.image
from datasets.errors import UserError, valid_are
from datasets.ranges import as_setting, check_field
from datasets.schema import Graph
from datasets.words import convert
from mechanisms.image.base import ImageMechanism
from mechanisms.image.own import KIND, build_own, builder_of, is_file, settings_of, takes_any, try_out
from mechanisms.runs.files import RunError, check_finite, load, rebuilt

FOLDER = "image"


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
    if name not in (classes := image_mechanisms()):
        raise UserError(f"unknown image mechanism {name!r}; {valid_are(classes, name)}, or your own file: FILE.py:build")
    return classes[name]


def builder(name: str) -> Callable[..., Any]:
    """The class of that name, or the function or class that ``FILE.py:build`` names, whose file is run.

    Raises:
        UserError: see :func:`image_mechanism` and :func:`mechanisms.image.own.builder_of`.
    """
    return builder_of(name) if is_file(name) else image_mechanism(name)


def config_class(make: Callable[..., Any]) -> type | None:
    """The dataclass of a class's settings; None of a function, whose settings are its parameters."""
    return make.settings if isinstance(make, type) and issubclass(make, ImageMechanism) else None


def build(name: str, graph: Graph, config: Any = None, settings: Mapping[str, Any] | None = None) -> ImageMechanism:
    """A new image mechanism; one from a user's file is tried on two random images.

    Args:
        name: of a file of this folder, or ``FILE.py:build``.
        config: of the class's ``settings``; its defaults if None.
        settings: some of its fields, or of a function's parameters, as values or as text, which is converted to their type.

    Raises:
        UserError: for an unknown name; for settings of another mechanism, unknown ones, and values that they cannot have; for a
            user's file that does not make an image mechanism that works.
    """
    model = _built(name, builder(name), graph, config, settings or {})
    if model.origin is not None:
        try_out(model, name)
    return model


def _built(name: str, make: Callable[..., Any], graph: Graph, config: Any, settings: Mapping[str, Any]) -> ImageMechanism:
    kind = config_class(make)
    if config is not None and (kind is None or not isinstance(config, kind)):
        theirs = "its own settings, by --set" if kind is None else f"settings of {kind.__name__}"
        raise UserError(f"the image mechanism {name!r} takes {theirs}, not of {type(config).__name__}")
    if kind is None:
        values = converted(name, settings, settings_of(make), anything=takes_any(make))
        return build_own(name, graph, lambda: make(graph, **values), values)
    config = replace(config or kind(), **converted(name, settings, _types(kind), kind))
    return build_own(name, graph, lambda: make(graph, config), asdict(config)) if is_file(name) else make(graph, config)


def _types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def converted(name: str, settings: Mapping[str, Any], types: Mapping[str, Any], kind: type | None = None,
              anything: bool = False) -> dict[str, Any]:
    """``settings`` of the mechanism ``name`` with each text as the type that is declared.

    Args:
        types: setting → type.
        kind: the dataclass whose fields they are, if it is one: it may say which range a number lies in.
        anything: whether settings of other names are taken, as they are.

    Raises:
        UserError: for an unknown setting: the valid ones are listed; for a value of another type or out of its range.
    """
    values = {}
    for key, value in settings.items():
        if key not in types and not anything:
            raise UserError(f"the image mechanism {name!r} has no setting {key!r}; {valid_are(types, key)}")
        values[key] = convert(value, types.get(key, str), f"--set {key}={value}")
        if kind is not None:
            check_field(kind, key, values[key], lambda setting, refused: f"--set {as_setting(setting, refused)}")
    return values


def describe(model: ImageMechanism) -> dict[str, Any]:
    """Plain values that rebuild ``model``; stored with its weights."""
    made = {"kind": model.name, "config": asdict(model.config)} if model.origin is None else model.origin.to_dict()
    return {"kind": made.pop("kind"), "graph": model.graph.to_dict(), **made}


def load_image_mechanism(path: Path) -> ImageMechanism:
    """The mechanism that ``mechanisms.train`` left in a run folder, in eval mode; settings younger than it take their defaults.

    The file of a mechanism that came from a user's own is run again.

    Raises:
        RunError: for a file that cannot be read, or weights that are not finite; where a user's file is gone or builds another
            network than it did.
    """
    state = load(path)
    if state.get("kind") == KIND:
        model = _load_own(path, state)
    elif state.get("kind") in (classes := image_mechanisms()):
        kind = classes[state["kind"]]
        model = rebuilt(path, lambda: kind(Graph.from_dict(state["graph"]), kind.settings(**state["config"])), state.get("weights"))
    else:
        raise RunError(f"{path} holds a {state.get('kind')!r}; image mechanisms are {', '.join(classes)}, or come from a file of their own")
    check_finite(model, path, "Train it anew with a smaller --learning-rate")
    return model.eval()


def _load_own(path: Path, state: Mapping[str, Any]) -> ImageMechanism:
    """Built without its trial: what is there was trained."""
    file, function = Path(str(state.get("file"))), str(state.get("function"))
    if not file.is_file():
        raise RunError(f"{path} was built by {function} of {file}, which is gone; put that file back where it was")
    name = f"{file}:{function}"
    make = builder_of(name)
    remedy = f"If {file} has changed since the training, undo that, or train anew"
    if (kind := config_class(make)) is not None:
        return rebuilt(path, lambda: _built(name, make, Graph.from_dict(state["graph"]), kind(**state["config"]), {}),
                       state.get("weights"), remedy, rehearse=False)
    return rebuilt(path, lambda: _built(name, make, Graph.from_dict(state["graph"]), None, state["config"]), state.get("weights"), remedy,
                   rehearse=False)
