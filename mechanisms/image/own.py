"""A user's own image mechanism, from a file: a function that builds one, or a class.

    def build(graph, width: int = 32):      # --mechanism my_mechanism.py:build --set width=64
        return MyMechanism(graph, …)        # a mechanisms.image.base.ImageMechanism

A class is built as those of this folder are, ``MyMechanism(graph, settings)`` with its own dataclass of ``settings``. Whatever it is
built from is tried on two random images before it is trained. See ``docs/my_mechanism.py``.

The file is code, to be had from someone you trust. A run folder remembers its path, not its content: the file is run again whenever the
mechanism is loaded (:meth:`dscm.DSCM.load` and every command that reads the run), so it has to stay where it was, as it was.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.schema import Graph
from datasets.userfile import callable_of, split_spec, told_as_theirs
from mechanisms.image.base import ImageMechanism, ImageNoise
from mechanisms.runs.files import RunError
from mechanisms.training.noise import Noise

KIND = "file"  # of the description of a mechanism that comes from a user's file
_ROWS, _OFF = 2, 1 / 255  # images of the trial; how far a pixel may be from what it was


@dataclass(frozen=True)
class Origin:
    """Which function of which file built a mechanism, and with which settings; kept as ``ImageMechanism.origin``."""

    file: Path
    function: str
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": KIND, "file": str(self.file), "function": self.function, "config": dict(self.settings)}


def is_file(name: str) -> bool:
    """Whether ``--mechanism name`` means a user's file."""
    path, _ = split_spec(name)
    return path.suffix == ".py"


def builder_of(name: str) -> Callable[..., Any]:
    """The function or class that ``FILE.py:build`` names; the file is run.

    Raises:
        RunError: for a missing or broken file, or a name that is missing or not there.
    """
    path, function = split_spec(name)
    if not function:
        raise RunError(f"--mechanism {name}: name the function or class that makes the mechanism: {name}:build")
    return callable_of(path, function, "mechanism file", RunError)


def settings_of(builder: Callable[..., Any]) -> dict[str, Any]:
    """Name → type of the settings that a function takes beside the graph; a setting without annotation has the type of its default."""
    try:
        hints = typing.get_type_hints(builder, include_extras=True)
    except Exception:  # an annotation that names nothing does not keep a function from being called
        hints = {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [p for p in inspect.signature(builder).parameters.values() if p.kind in kinds][1:]
    return {p.name: hints.get(p.name, str if p.default in (None, p.empty) else type(p.default)) for p in parameters}


def takes_any(builder: Callable[..., Any]) -> bool:
    """Whether a function takes settings of any name, as ``**settings``, which stay text."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(builder).parameters.values())


def build_own(name: str, graph: Graph, make: Callable[[], Any], settings: Mapping[str, Any]) -> ImageMechanism:
    """What ``make`` returns, if it is an image mechanism of this graph, marked with where it comes from.

    Args:
        name: ``FILE.py:build``.
        make: calls the function, or the class.
        settings: that it was called with, plain values, to be stored with the weights.

    Raises:
        RunError: where it fails, told with the user's own line, or makes anything else.
    """
    path, function = split_spec(name)
    with told_as_theirs(path, f"{function} fails", RunError):
        model = make()
    if not isinstance(model, ImageMechanism):
        raise RunError(f"{name} returns a {type(model).__name__}; expected a mechanisms.image.base.ImageMechanism")
    if (theirs := getattr(model, "graph", None)) is not graph and not (isinstance(theirs, Graph) and not theirs.difference(graph)):
        raise RunError(f"{name}: its graph is not the one that {function}(graph) was given: call super().__init__(graph, config)")
    if next(model.parameters(), None) is None:
        raise RunError(f"{name} has no parameters, so that there is nothing to train")
    model.origin = Origin(path.resolve(), function, dict(settings))
    return model


def try_out(model: ImageMechanism, name: str) -> None:
    """Use every verb of a mechanism on two random images of its graph; weights and torch's random numbers stay as they are.

    Raises:
        RunError: for a verb that fails, or that returns something of a wrong kind or shape, or that is not finite; where
            ``predict(abduct(x, pa), pa)`` is not x.
    """
    path, _ = split_spec(name)
    mode, graph = model.training, model.graph
    model.eval()
    with torch.random.fork_rng(devices=[]):
        images = torch.randint(256, (_ROWS, *graph.image.shape), generator=torch.Generator().manual_seed(0)) / 255
        parents = _parents(graph)
        with told_as_theirs(path, f"forward fails on {_ROWS} images {tuple(images.shape)}, float in [0, 1]", RunError):
            terms = model({**parents, "image": images}, Noise(0), 0.5)
        _check_terms(terms, model, name)
        with torch.no_grad():
            _try_verbs(model, images, parents, name, path)
    model.train(mode)


def _try_verbs(model: ImageMechanism, images: Tensor, parents: Mapping[str, Tensor], name: str, path: Path) -> None:
    twice = {key: value.repeat(2) for key, value in parents.items()}
    with told_as_theirs(path, "abduct(images, parents) fails", RunError):
        noise = model.abduct(images, parents)
    _check_noise(noise, _ROWS, f"{name}: abduct(images, parents)")
    with told_as_theirs(path, "predict(noise, parents) fails", RunError):
        again = model.predict(noise, parents)
    _check_images(again, images.shape, f"{name}: predict(noise, parents)")
    if (apart := float((again - images).abs().max())) > _OFF:
        raise RunError(f"{name}: predict(abduct(x, pa), pa) is not x, but up to {apart:.3g} away from it (pixels lie in [0, 1]); "
                       "what the model does not explain belongs into the noise")
    with told_as_theirs(path, "abduct(images, parents, draw, draws=2) fails", RunError):
        drawn = model.abduct(images, parents, Noise(0), draws=2)
    _check_noise(drawn, 2 * _ROWS, f"{name}: abduct(images, parents, draw, draws=2)")
    with told_as_theirs(path, "predict(noise, parents, temperature=0) fails", RunError):
        bare = model.predict(drawn, twice, temperature=0.0)
    _check_images(bare, (2 * _ROWS, *images.shape[1:]), f"{name}: predict(noise, parents, temperature=0)")
    with told_as_theirs(path, "draw_noise(rows, draw) fails", RunError):
        sampled = model.draw_noise(_ROWS, Noise(0))
    _check_noise(sampled, _ROWS, f"{name}: draw_noise({_ROWS}, draw)")
    with told_as_theirs(path, "predict fails on drawn noise", RunError):
        made = model.predict(sampled, parents)
    _check_images(made, images.shape, f"{name}: predict of drawn noise")
    with told_as_theirs(path, "the noise cannot be cut and joined by rows(index) and cat(noises)", RunError):
        parts = [noise.rows(torch.tensor([1])), noise.rows(slice(0, 1))]
        joined = type(noise).cat(parts)
    for part, rows in ((parts[0], 1), (parts[1], 1), (joined, _ROWS)):
        _check_noise(part, rows, f"{name}: rows(index) or cat(noises) of its noise")


def _parents(graph: Graph) -> dict[str, Tensor]:
    """Two values of every attribute, inside its support."""
    return {v.name: torch.tensor([0, 1]) if v.discrete else v.constrain(torch.tensor([-0.5, 0.5])) for v in graph.attributes}


def _check_terms(terms: Any, model: ImageMechanism, name: str) -> None:
    where = f"{name}: forward(batch, noise, progress)"
    if not isinstance(terms, Mapping):
        raise RunError(f"{where} returns a {type(terms).__name__}; expected terms by name, (B,) each, 'loss' among them")
    for due in ("loss", *(("free_energy",) if model.bounded else ())):
        if due not in terms:
            remedy = ", or say bounded = False" if due == "free_energy" else ""
            raise RunError(f"{where} returns {', '.join(map(str, terms)) or 'nothing'}, and no {due!r}; add it{remedy}")
    for key, value in terms.items():
        _check_values(value, (_ROWS,), f"{where}[{key!r}]")
    if not terms["loss"].requires_grad:
        raise RunError(f"{where}['loss'] has no gradient, so that nothing would be learned")


def _check_values(value: Any, shape: tuple[int, ...], where: str) -> None:
    if not isinstance(value, Tensor):
        raise RunError(f"{where} is a {type(value).__name__}; expected a tensor {tuple(shape)}")
    if tuple(value.shape) != tuple(shape):
        raise RunError(f"{where} has shape {tuple(value.shape)}; expected {tuple(shape)}")
    if not value.is_floating_point() or not torch.isfinite(value).all():
        raise RunError(f"{where} is not finite" if value.is_floating_point() else f"{where} is {value.dtype}; expected float32")


def _check_images(images: Any, shape: tuple[int, ...], where: str) -> None:
    _check_values(images, shape, where)
    least, most = float(images.min()), float(images.max())
    if least < -_OFF or most > 1 + _OFF:
        raise RunError(f"{where} has pixels from {least:.3g} to {most:.3g}; images lie in [0, 1]: clamp them")


def _check_noise(noise: Any, rows: int, where: str) -> None:
    if not isinstance(noise, ImageNoise):
        raise RunError(f"{where} returns a {type(noise).__name__}; expected a mechanisms.image.base.ImageNoise")
    if (there := len(noise)) != rows:
        raise RunError(f"{where} has {there} rows; expected {rows}")

