"""Whether a model can be asked: the observation, the number of draws, and what its image mechanism offers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.arguments import number, whole
from datasets.schema import Graph, SchemaError
from mechanisms.image.base import ImageMechanism


def check_observation(graph: Graph, observed: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The observation on this device: attributes ``(B,)`` in the schema's types, ``image`` float32 ``(B, C, H, W)`` in [0, 1].

    Raises:
        SchemaError: for a variable that is missing, of another type, shape or length, or without support.
    """
    attributes = graph.check(observed, "the observation")
    if "image" not in observed:
        raise SchemaError("the observation has no 'image'")
    try:
        image = torch.as_tensor(observed["image"])
    except (TypeError, ValueError, RuntimeError):
        raise SchemaError(f"image is a {type(observed['image']).__name__}; expected a float tensor (B, "
                          f"{', '.join(map(str, graph.image.shape))}) in [0, 1]") from None
    if tuple(image.shape[1:]) != graph.image.shape or not image.is_floating_point():
        raise SchemaError(f"image is {image.dtype} of shape {tuple(image.shape)}; expected float (B, "
                          f"{', '.join(map(str, graph.image.shape))}) in [0, 1]")
    for name, value in attributes.items():
        if len(value) != len(image):
            raise SchemaError(f"the observation has {len(image)} images but {len(value)} values of {name!r}")
    if len(image) and not (image.min() >= 0 and image.max() <= 1):
        raise SchemaError(f"image has values {image.min():g}..{image.max():g}; expected [0, 1]")
    return {**{n: v.to(device) for n, v in attributes.items()}, "image": image.to(device, torch.float32)}


def check_draws(draws: int | None) -> int | None:
    """The number of draws, at least 1; None for a single answer at the latents' mean.

    Raises:
        SchemaError: for anything else.
    """
    return None if draws is None else whole(draws, "draws", 1)


def check_prediction(image: ImageMechanism, temperature: float, effect: str = "total") -> float:
    """The temperature of the pixel residual, as a number.

    Raises:
        UserError: for a temperature other than 1 of a mechanism that has no residual, or an effect that it cannot tell apart.
    """
    temperature = number(temperature, "temperature")
    if temperature != 1 and not image.tempered:
        raise SchemaError(f"temperature={temperature:g}: the image mechanism {image.name!r} has no pixel residual to scale; leave it out")
    image.check_effect(effect)
    return temperature
