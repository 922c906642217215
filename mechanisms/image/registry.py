"""The image mechanisms there are, by name, and how one is rebuilt from its file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from datasets.schema import Graph
from mechanisms.image.config import ImageConfig
from mechanisms.image.hvae import HVAE
from mechanisms.image.latent import ImageMechanism
from mechanisms.image.vae import VAE
from mechanisms.runs.files import check_finite, load, rebuilt

IMAGE_MECHANISMS: dict[str, type[ImageMechanism]] = {"vae": VAE, "hvae": HVAE}  # the names of image_options.MechanismName
FOLDER = "image"


def describe(name: str, model: ImageMechanism) -> dict[str, Any]:
    """Plain values that rebuild ``model``; stored with its weights."""
    return {"kind": name, "graph": model.graph.to_dict(), "config": asdict(model.config)}


def build(name: str, graph: Graph, config: ImageConfig | None = None) -> ImageMechanism:
    """A new image mechanism.

    Raises:
        UserError: for an unknown name; the valid ones are listed.
    """
    if name not in IMAGE_MECHANISMS:
        raise UserError(f"unknown image mechanism {name!r}; valid are {', '.join(IMAGE_MECHANISMS)}")
    return IMAGE_MECHANISMS[name](graph, config)


def load_image_mechanism(path: Path) -> ImageMechanism:
    """The mechanism that ``mechanisms.train`` left in a run folder, in eval mode; options younger than it take their defaults.

    Raises:
        RunError: for a file that cannot be read, or weights that are not finite.
    """
    state = load(path)
    if state.get("kind") not in IMAGE_MECHANISMS:
        raise UserError(f"{path} holds a {state.get('kind')!r}; image mechanisms are {', '.join(IMAGE_MECHANISMS)}")
    model = rebuilt(path, lambda: build(state["kind"], Graph.from_dict(state["graph"]), ImageConfig(**state["config"])),
                    state.get("weights"))
    check_finite(model, path, "Train it anew with a smaller --learning-rate")
    return model.eval()
