"""The image mechanisms there are, by name, and how one is rebuilt from its file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets.errors import UserError
from datasets.schema import Graph
from mechanisms.checkpoint import load
from mechanisms.hvae import HVAE, HVAEConfig

IMAGE_MECHANISMS = {"hvae": (HVAE, HVAEConfig)}
FOLDER = "image"


def describe(name: str, model: HVAE) -> dict[str, Any]:
    """Plain values that rebuild ``model``; stored with its weights."""
    return {"kind": name, "graph": model.graph.to_dict(), "config": asdict(model.config)}


def build(name: str, graph: Graph, config: Any = None) -> HVAE:
    """A new image mechanism.

    Raises:
        UserError: for an unknown name; the valid ones are listed.
    """
    if name not in IMAGE_MECHANISMS:
        raise UserError(f"unknown image mechanism {name!r}; valid are {', '.join(IMAGE_MECHANISMS)}")
    return IMAGE_MECHANISMS[name][0](graph, config)


def load_image_mechanism(path: Path) -> HVAE:
    """The mechanism that ``mechanisms.train`` left in a run folder, in eval mode."""
    state = load(path)
    if state.get("kind") not in IMAGE_MECHANISMS:
        raise UserError(f"{path} holds a {state.get('kind')!r}; image mechanisms are {', '.join(IMAGE_MECHANISMS)}")
    model_class, config_class = IMAGE_MECHANISMS[state["kind"]]
    model = model_class(Graph.from_dict(state["graph"]), config_class(**state["config"]))
    model.load_state_dict(state["weights"])
    return model.eval()
