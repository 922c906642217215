"""A user's own classifier, from a file: a function that builds a module and weights for it, or an exported program.

    def build(shape, classes):          # or build()
        return MyNetwork(...)           # float in [0, 1], (B, C, H, W) → logits (B, K); for two classes also (B,) or (B, 1)

What it answers with need not be logits: see :mod:`experiments.networks.outputs`.

Both kinds of file are code, to be had from someone you trust: a Python file is imported, with its own folder on the path
for as long as that takes, and of an exported program torch evaluates the graph's expressions. What torch would unpickle
beside them is refused, which makes neither harmless. Weights are read without executing anything.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from datasets.task import Task
from datasets.userfile import forget_others
from experiments.networks.outputs import AUTO, LOGITS, as_logits, check_trial, logits_of
from mechanisms.runs.files import RunError

PROGRAM = ".pt2"
_INSIDE = ("state_dict", "model_state_dict", "model", "weights")  # keys below which trainers put the weights
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")  # left by data parallelism, by compilation, by trainers' wrappers
_PROBES = (2, 16)  # images of the trial: two sizes, since an exported program may have fixed one
_SHOWN = 4


class OwnClassifier:
    """What other classifiers offer, too: ``predict(images (B, C, H, W) in [0, 1]) → logits (B, K)``."""

    def __init__(self, name: str, network: Callable[[Tensor], Tensor], classes: int, where: str, device: torch.device,
                 outputs: str = LOGITS) -> None:
        self.outputs = outputs
        self.name, self.network, self.classes, self.where, self.device = name, network, classes, where, device
        self.explained, self._answers = isinstance(network, nn.Module) and not isinstance(network, GraphModule), False

    @torch.no_grad()
    def answer(self, images: Tensor) -> Any:
        """What the network itself returns.

        Raises:
            RunError: if it fails.
        """
        try:
            return self.network(images.to(self.device))
        except Exception as error:  # whatever a user's code raises
            raise RunError(f"{self.where} fails on images {tuple(images.shape)}, float in [0, 1]: {_line(error)}") from error

    def predict(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)``.

        Raises:
            RunError: if the classifier fails, or returns what are no logits of these classes.
        """
        return as_logits(self.answer(images), len(images), self.classes, self.where, LOGITS if self._answers else self.outputs)

    def module(self) -> nn.Module | None:
        """The network itself, answering with logits ``(B, K)`` with their graph, to be explained; None of an exported program, which
        has neither layers nor modes.
        """
        if not self.explained:
            return None
        if not self._answers:  # a single number may stand for both logits, and probabilities for logits
            self.network.register_forward_hook(lambda module, given, answer: logits_of(
                answer, len(given[0]), self.classes, self.where, self.outputs))
            self._answers = True
        return self.network


def open_own(spec: str, task: Task, weights: Path | None = None, name: str = "", device: str | torch.device = "cpu",
             outputs: str = AUTO) -> OwnClassifier:
    """The classifier that ``file.py:function`` builds, or the exported program ``file.pt2``, tried on two batches of the training split.

    Args:
        outputs: what it answers with; ``auto``: logits, unless the trial's look like probabilities.

    Raises:
        RunError: for a missing file or function; weights that are missing, damaged or of another architecture; an answer
            of the wrong shape, or one that is not finite; with ``auto``, answers that look like probabilities.
    """
    file, _, function = spec.partition(":")
    path, device = Path(file), torch.device(device)
    if not path.is_file():
        raise RunError(f"--classifier {spec}: the file {path} does not exist; give file.py:function or an exported program file{PROGRAM}")
    shape, classes = task.dataset.schema.image.shape, task.classes
    if path.suffix == PROGRAM:
        if function or weights:
            raise RunError(f"--classifier {spec}: an exported program holds its own weights; leave :function and --weights out")
        network = _program(path).to(device)
    else:
        network = _built(path, function, shape, classes)
        if weights is not None:
            load_weights(network, weights)
        network = network.to(device).eval()
    own = OwnClassifier(name or path.stem, network, classes, f"the classifier {spec}", device, outputs)
    rows = task.dataset.split("train")
    for size in _PROBES:
        images = rows.batch(range(min(size, len(rows))))["image"]
        try:
            answer = own.answer(images)
            as_logits(answer, len(images), classes, own.where, outputs)
        except RunError as error:
            if path.suffix == PROGRAM:
                raise RunError(f"{error}. If it was exported for one batch size, export it again with "
                               "dynamic_shapes=({0: torch.export.Dim('batch')},)") from error
            raise
    if outputs == AUTO:
        check_trial(answer.float(), own.where)
    return own


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


# -------------------------------------------------------------------------------------------------------- building
def _built(path: Path, function: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    if not function:
        raise RunError(f"--classifier {path}: name the function that builds the classifier: {path}:build")
    name = f"_otherwise_classifier_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None:
        raise RunError(f"--classifier {path}: not a Python file; give file.py:function or an exported program file{PROGRAM}")
    module = importlib.util.module_from_spec(specification)
    with _on_path(path.resolve().parent):
        sys.modules[name] = module  # dataclasses and pickle look a class's module up there
        try:
            specification.loader.exec_module(module)
        except Exception as error:  # whatever a user's code raises
            del sys.modules[name]
            raise RunError(f"{path} cannot be imported: {_line(error)}") from error
        build = getattr(module, function, None)
        if not callable(build):
            functions = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == name]
            raise RunError(f"{path} has no function {function!r}; it has {', '.join(functions) or 'none'}")
        try:
            network = build(shape, classes) if _takes(build, 2) else build()
        except Exception as error:
            raise RunError(f"{path}:{function} fails: {_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise RunError(f"{path}:{function} returns a {type(network).__name__}; expected a torch.nn.Module")
    return network


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Modules beside a file can be imported, as when the file is run as a script."""
    forget_others(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it needs so many positional arguments, and is not content with none."""
    signature = inspect.signature(function)
    try:
        signature.bind()
        return False
    except TypeError:
        try:
            signature.bind(*range(count))
            return True
        except TypeError:
            return False


def _program(path: Path) -> nn.Module:
    try:
        pickled = _pickled(path)
    except Exception as error:  # zip, JSON or structure that is not torch's
        raise RunError(f"{path} is damaged, or no program of torch.export.save ({_line(error)})") from error
    if pickled:
        raise RunError(f"{path} holds what torch would unpickle, which can run any code: {_listed(pickled)}. Export the network again "
                       "with a recent torch and plain tensors, or give file.py:function and --weights")
    try:
        return torch.export.load(path).module()
    except Exception as error:  # what a damaged archive makes torch raise has no common class
        raise RunError(f"{path} is damaged, or no program of torch.export.save ({_line(error)})") from error


def _pickled(path: Path) -> list[str]:
    """Parts of an exported program that torch reads with the full pickle: of older formats, of tensors saved so, of custom objects."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inner = [name.partition("/")[2] for name in names]  # below the archive's own name
        pickled = [name for name in names if len(name.split("/")) == 1]  # the first format, before there were archives
        pickled += [name for name, part in zip(names, inner, strict=True) if names.count(name) > 1 or part.startswith("data/aotinductor/")
                  or (part.startswith(("data/weights/", "data/constants/")) and part.endswith(".pt"))]
        for name, part in zip(names, inner, strict=True):
            if part.startswith(("data/weights/", "data/constants/")) and part.endswith("_config.json"):
                payloads = json.loads(archive.read(name))["config"].items()
                pickled += [key for key, payload in payloads if payload["use_pickle"]
                          or ("constants" in part and not payload["path_name"].startswith("tensor_"))]
            elif part.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
                except Exception:  # torch would then read it without weights_only
                    pickled.append(name)
    return pickled


# -------------------------------------------------------------------------------------------------------- weights
def load_weights(network: nn.Module, path: Path) -> None:
    """Put the weights of a file into ``network``: safetensors, or a state dict of torch, also below a key of a checkpoint.

    Raises:
        RunError: for a file that is missing or damaged, and for weights of another architecture, naming what differs.
    """
    state = unwrapped(read_weights(path), network.state_dict())
    check_weights(network.state_dict(), state, str(path), "Build the network that they were trained in")
    network.load_state_dict(state)


def unwrapped(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without what wrappers put before *every* name, one around another, unless the network's ``own`` names begin so too."""
    state = dict(state)
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in state) and not all(n.startswith(p) for n in own)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def check_weights(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises RunError for weights ``state`` that are not of the architecture whose weights are ``own``, naming what differs."""
    differences = [f"{what} {_listed(names)}" for what, names in (
        ("it lacks", [n for n in own if n not in state]), ("it has the unknown", [n for n in state if n not in own]),
        ("of another shape:", [f"{n} ({_shape(v)} in the file, {_shape(own[n])} built)" for n, v in state.items()
                               if n in own and v.shape != own[n].shape])) if names]
    if differences:
        raise RunError(f"{where} holds weights of another architecture: {'; '.join(differences)}. {remedy}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """``{name: tensor}`` of a file.

    Raises:
        RunError: for a file that is missing, damaged, or holds no tensors by name.
    """
    if not path.is_file():
        raise RunError(f"--weights {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise RunError(f"{path} needs the safetensors package: pip install safetensors") from None
    except UnpicklingError as error:
        raise RunError(f"{path} is damaged, or holds more than tensors; save network.state_dict(), not the network") from error
    except Exception as error:  # what a damaged archive or pickle raises has no common class, and says nothing to a reader
        kind = "file of safetensors" if path.suffix == ".safetensors" else "state dict of torch"
        raise RunError(f"{path} is damaged, or no {kind}; save network.state_dict()") from error
    while isinstance(state, Mapping) and (inner := next((k for k in _INSIDE if isinstance(state.get(k), Mapping)), None)):
        state = state[inner]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise RunError(f"{path} holds no state dict: expected tensors by name, also below {', '.join(_INSIDE)}; save network.state_dict()")
    return dict(state)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
