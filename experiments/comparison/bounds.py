"""What every table of counterfactuals is read against: a model that does nothing, and the truth itself.

Both answer as a :class:`dscm.DSCM` does, so that they are scored by the very same metrics.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.schema import Graph, SchemaError
from dscm.capabilities import Capabilities
from dscm.evaluation.questions import Questions
from dscm.model import Counterfactual
from pgm.interventions import Do, resolve_do

Values = Mapping[str, Tensor]
_KEPT = 8  # answers of the truth that are not rendered again


class Identity:
    """Sets the intervened attributes and leaves all else, the image above all, as it was observed."""

    capabilities = Capabilities()
    device = torch.device("cpu")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def counterfactual(self, observed: Values, do: Do, *, generator: torch.Generator | None = None,
                       batch_size: int = 256) -> Counterfactual:
        """The observation with ``do``; nothing is drawn."""
        observed = {name: torch.as_tensor(value) for name, value in observed.items()}
        values, beyond = resolve_do(self.graph, do, observed, len(observed["image"]))
        attributes = {v.name: values.get(v.name, observed[v.name]) for v in self.graph.attributes}
        return Counterfactual(attributes, observed["image"].clone(), beyond)


class Truth:
    """The known process itself, asked about the rows of ``questions`` or the first of them.

    An observation may itself be a true counterfactual of its row, as in a chain of interventions: attributes that have a
    true image are taken to be what the observation says, unless ``do`` changes them.

    Raises:
        SchemaError: for a data set that does not know its own process, or a question that has no true image.
    """

    capabilities = Capabilities()
    device = torch.device("cpu")

    def __init__(self, dataset: CausalDataset, questions: Questions) -> None:
        if not any(dataset.has_truth([q.variable]) for q in questions.questions):
            raise SchemaError(f"{dataset.title} knows no true counterfactual of what is asked")
        self.dataset, self.questions, self.graph = dataset, questions, dataset.graph
        self._rendered: dict[bytes, dict[str, Tensor]] = {}

    def counterfactual(self, observed: Values, do: Do, *, generator: torch.Generator | None = None,
                       batch_size: int = 256) -> Counterfactual:
        """What would have been, image included; see the class."""
        observed = {name: torch.as_tensor(value) for name, value in observed.items()}
        rows = len(observed["image"])
        values, beyond = resolve_do(self.graph, do, observed, rows)
        truth = self.world(observed, values)
        return Counterfactual({v.name: truth[v.name] for v in self.graph.attributes}, truth["image"], beyond)

    def world(self, observed: Values, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every variable of the true world under ``values``, ``(B,)`` each, and ``image``.

        Asking the same again renders nothing again: metrics ask, and a supervised network takes its parents from here.
        """
        rows = len(observed["image"])
        if rows > len(self.questions):
            raise SchemaError(f"the truth is known of the {len(self.questions)} rows that are asked about, not of {rows}")
        if not values:
            return {**{v.name: observed[v.name] for v in self.graph.attributes}, "image": observed["image"]}
        index, affected = self.questions.index[:rows], self.graph.descendants(values)
        original = self.dataset.split(self.questions.split).attributes
        changed = {n for n in self.dataset.true_images_under if n not in values and n not in affected
                   and not torch.equal(observed[n], original[n][index])}
        do = {**values, **{n: observed[n] for n in sorted(changed)}}
        if not self.dataset.has_truth(list(do)):
            raise SchemaError(f"do({', '.join(sorted(do))}) has no true image in {self.dataset.title}")
        key = b"".join(name.encode() + do[name].numpy().tobytes() for name in sorted(do))
        if key not in self._rendered:
            if len(self._rendered) == _KEPT:
                self._rendered.pop(next(iter(self._rendered)))
            self._rendered[key] = self.dataset.true_counterfactual(self.questions.split, index, do)
        return dict(self._rendered[key])
