"""How far an image mechanism misses the values that it is asked to show: what draws of the latents alone leave out.

    e = (reading(x*) − a*) − (reading(x) − a),    s(v, a) = Q_.9(|e|)/1.645

for each intervened variable v and each attribute a that can be read off an image, over validation images; a* is the value that
was set, so that no true counterfactual is needed. What the reading itself misses on this very image is subtracted. A normal
distribution of deviation s holds nine tenths of the errors e, however wild the others are. Draws then ask for ``a* + s·ε``,
ε ~ N(0, 1), a new ε for each draw and image.

Posterior draws of the latents say how uncertain the image's *noise* is. They are nearly sure of it, so that intervals made of them
are far too narrow: the larger part of the error is the mechanism's own; set to thickness 3, it draws 3.1. Figures: docs/design-notes.md.
The readings are the data set's measurement, or a predictor's where there is none. Images without draws are not touched.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from datasets.schema import Graph, Variable
from mechanisms.runs.files import RunError, damaged, read_json, write_json
from mechanisms.training.state import WEIGHTS

FILE = "calibration.json"
FORMAT = 1
LEVEL = 0.9

Values = Mapping[str, Tensor]
Reader = Callable[[Tensor], Values]  # images (B, C, H, W) in [0, 1] → attributes (B,) in physical units


@dataclass(frozen=True)
class Calibration:
    """Standard deviations ``{intervened: {attribute: s}}`` in physical units, of the image mechanism with this hash."""

    spread: Mapping[str, Mapping[str, float]]
    mechanism: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def jitter(self, graph: Graph, intervened: Iterable[str], attributes: Values, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The image's parents ``(B,)``, those with a spread moved at random, inside their support and what training has shown.

        Of several intervened variables the variances add up. A value beyond the training range is not pulled back.
        """
        moved, names = dict(attributes), list(intervened)
        for variable in graph.image_parents:
            variance = sum(self.spread.get(v, {}).get(variable.name, 0.0) ** 2 for v in names)
            if variable.discrete or not variance:
                continue
            value = attributes[variable.name]
            home = generator.device if generator is not None else value.device
            noise = torch.randn(value.shape, generator=generator, device=home).to(value.device)
            low, high = (torch.full_like(value, bound) for bound in (variable.statistics.minimum, variable.statistics.maximum))
            moved[variable.name] = (value + variance**0.5 * noise).clamp(torch.minimum(low, value), torch.maximum(high, value))
        return moved

    def save(self, run: Path) -> None:
        """Write it into a run folder, whole or not at all."""
        write_json(run / FILE, {"kind": "calibration", "format": FORMAT, "mechanism": self.mechanism, "spread": self.spread,
                                "about": dict(self.about)})

    @classmethod
    def load(cls, run: Path, mechanism: str) -> Calibration | None:
        """That of a run folder; None if it has none, or, with a warning, if the image mechanism has been trained since.

        Raises:
            RunError: for a file that cannot be read.
        """
        if not (run / FILE).exists():
            return None
        again = f"Remove {run / FILE}; python -m dscm.calibrate --run {run} makes it anew"
        state = read_json(run / FILE, {"kind": str, "format": int}, again)
        if state["kind"] != "calibration" or state["format"] != FORMAT:
            raise RunError(f"{run / FILE} is not a calibration (format {FORMAT}); python -m dscm.calibrate --run {run} writes one")
        read_json(run / FILE, {"mechanism": str, "spread": dict, "about": dict}, again)
        for name, spread in state["spread"].items():
            if not isinstance(spread, dict) or not all(isinstance(s, int | float) and 0 <= s < math.inf for s in spread.values()):
                raise damaged(run / FILE, f"the spread of {name} is not attribute → number", again)
        if state["mechanism"] != mechanism:
            warnings.warn(f"{run / FILE} is of another image mechanism than {run} holds now, so draws vary by their latents alone; "
                          f"python -m dscm.calibrate --run {run} makes it anew", stacklevel=3)
            return None
        return cls(state["spread"], state["mechanism"], state["about"])


def mechanism_hash(folder: Path) -> str:
    """Identifies the trained mechanism of a folder by its file."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]


def effect_spread(variable: Variable, intended: Tensor, read: Tensor, observed: Tensor, read_observed: Tensor) -> float:
    """s of one attribute, from e = (read − intended) − (read_observed − observed), ``(B,)``: Q_.9(|e|)/1.645."""
    if variable.discrete:
        return 0.0
    errors = ((read - intended) - (read_observed - observed)).double()
    return float(errors.abs().quantile(LEVEL)) / NormalDist().inv_cdf((1 + LEVEL) / 2)


def calibrate(counterfactual: Callable[[Values, Values], Values], graph: Graph, observed: Values,
              interventions: Mapping[str, Tensor], reader: Reader) -> dict[str, dict[str, float]]:
    """Spreads ``{intervened: {attribute: s}}`` of a model.

    Args:
        counterfactual: ``(observed, do) → attributes and image``, one answer without draws.
        observed: attributes and ``image`` of validation rows.
        interventions: ``{variable: (B,)}`` values to ask for, one variable at a time.
        reader: reads attributes off images.
    """
    before, spread = reader(observed["image"]), {}
    for name, values in interventions.items():
        answer = counterfactual(observed, {name: values})
        after = reader(answer["image"])
        spread[name] = {a: effect_spread(graph[a], answer[a].cpu(), after[a].cpu(), observed[a].cpu(), before[a].cpu()) for a in after}
    return spread
