"""From a name to a network; one that is freshly initialised, and one rebuilt from its description."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from experiments.networks.base import Network, Shape
from experiments.networks.config import ClassifierConfig
from experiments.networks.small import MLP, SmallCNN
from experiments.networks.torchvision import backbone, known, load_pretrained
from mechanisms.runs.files import RunError
from mechanisms.runs.fitting import fitting

NETWORKS: dict[str, type[Network]] = {kind.name: kind for kind in (MLP, SmallCNN)}
ALIASES = {"small": SmallCNN.name}


def network_kind(name: str) -> type[Network]:
    """The class of that name: one of ours, or torchvision's network as a :class:`experiments.networks.torchvision.Backbone`.

    Raises:
        RunError: for an unknown name; the message lists ours, torchvision's families, and those of the family that is meant.
    """
    name = ALIASES.get(name, name)
    if name in NETWORKS:
        return NETWORKS[name]
    if (kind := backbone(name)) is None:
        ours = ", ".join([*NETWORKS, *ALIASES])
        raise RunError(f"unknown network {name!r}; valid are {ours}, and torchvision's {known(name)}")
    return kind


def build_network(name: str, shape: Shape, classes: int, hidden: int | None = None) -> Network:
    """A freshly initialised network.

    Args:
        name: see :func:`network_kind`.
        shape: of one image, ``(C, H, W)``.
        hidden: units of the last hidden layer; the network's own default if None.

    Raises:
        RunError: for an unknown name, fewer than two classes, or a size that makes no sense.
    """
    kind = network_kind(name)
    if classes < 2:
        raise RunError(f"a classifier needs at least two classes, not {classes}")
    if hidden is not None and hidden < 1:
        raise RunError(f"--hidden {hidden} must be at least 1")
    with fitting(f"--network {name}" + (f" --hidden {hidden}" if hidden else ""), 1):
        return kind(shape, classes, hidden)


def rebuild(description: Mapping[str, Any]) -> Network:
    """The network that :meth:`Network.describe` described, freshly initialised; no file of pretrained weights is read."""
    network = build_network(description["network"], tuple(description["shape"]), description["classes"], description["hidden"])
    network.pretrained = description.get("pretrained", "")
    return network.freeze() if description.get("frozen") else network


def fresh(config: ClassifierConfig, shape: Shape, classes: int, seed: int) -> Network:
    """The network that a configuration asks for, as a training begins with it; a function of the seed.

    Raises:
        RunError: see :func:`experiments.networks.registry.build_network` and :func:`load_pretrained`.
    """
    return copy.deepcopy(_fresh(config, tuple(shape), classes, seed))


@lru_cache(maxsize=1)  # a training asks for it several times, and drawing the weights of a deep network takes longer than copying them
def _fresh(config: ClassifierConfig, shape: Shape, classes: int, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config.network, shape, classes, config.hidden)
    load_pretrained(network, config.weights)
    return network.freeze() if config.frozen else network
