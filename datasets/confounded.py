"""Any data set, confounded by selection: what is kept for training makes a label and another attribute go together.

Which rows are kept depends on the attributes alone, so p(image | attributes) stays as it was: a model of the data set that
these rows come from answers for them too. Nothing is selected from the test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.base import SPLITS, CausalDataset, LazyImages, Shift
from datasets.files.images import kept
from datasets.ranges import Seed, within
from datasets.registry import open_dataset, register
from datasets.schema import Graph, SchemaError
from datasets.words import once

_STREAM = 5  # not the stream of random numbers that the other data set was made from

Strength = within(0.5, 1, why="0.5 is unconfounded")


@register
@dataclass(eq=False)
class Confounded(CausalDataset):
    """The graph, statistics and process of another data set; rows of training and validation are selected.

    Rows agree where the class lies in the upper half of the label's classes and the tied attribute above its median (of
    a discrete one: in the upper half of its classes), or both below. Of those that do not agree, (1 − s)/s are kept, at
    random: where they were one half, a share s of what is left agrees.

    Args:
        of: the other data set, a registered name or the path of a file.
        options: its options, ``KEY=VALUE`` separated by ``;``.
        predict: the discrete attribute that is the label; the other data set's own label if empty.
        tie: the attribute that goes with it; it and what it causes is spurious.
        strength: s; 0.5 leaves all rows.
        seed: of the selection.
        data_dir, download: handed on.
    """

    name: ClassVar[str] = "confounded"

    of: str = "morphomnist"
    options: str = ""
    predict: str = "digit"
    tie: str = "thickness"
    strength: Strength[float] = 0.95
    seed: Seed[int] = 0
    data_dir: Path | None = None
    download: bool = False

    def __post_init__(self) -> None:
        parts = [part.strip().partition("=") for part in self.options.split(";") if part.strip()]
        if wrong := ["".join(part) for part in parts if not (part[0] and part[1])]:
            raise SchemaError(f"confounded: options={self.options!r}: {wrong[0]!r} is not KEY=VALUE")
        once([key for key, _, _ in parts], f"confounded: options={self.options!r}", SchemaError)
        given: dict[str, Any] = {key: value for key, _, value in parts}
        given |= {"data_dir": self.data_dir} if self.data_dir else {}
        self.inner = open_dataset(self.of, {**given, **({"download": True} if self.download else {})})
        super().__post_init__()
        self.variables, self.border = self.inner.variables, self.inner.border
        self.true_images_under = self.inner.true_images_under
        self.label = self.predict or self.inner.label
        known = [v.name for v in self.inner.schema.attributes]
        for option, value in (("predict", self.label), ("tie", self.tie)):
            if value not in known:
                raise SchemaError(f"{self.title}: {option}={value!r} is no attribute; there are {', '.join(known)}")
        if not self.inner.schema[self.label].discrete:
            raise SchemaError(f"{self.title}: predict={self.label} is a number, not a class")
        caused = self.inner.schema.descendants([self.tie])
        if self.label == self.tie or self.label in caused:
            raise SchemaError(f"{self.title}: tie={self.tie} causes the label {self.label!r}, so that it matters rightly; tie another")
        self.spurious = (self.tie, *(name for name in known if name in caused))

    @property
    def title(self) -> str:
        return f"confounded {self.inner.title}"

    @property
    def answered_by(self) -> CausalDataset:
        return self.inner.answered_by

    @cached_property
    def graph(self) -> Graph:
        """That of the other data set, with the statistics of all its training rows."""
        return self.inner.graph

    # ------------------------------------------------------------------------------------------------ selection
    def _upper(self, name: str, values: Tensor) -> Tensor:
        """Whether each value is in the upper half."""
        variable = self.inner.schema[name]
        if variable.discrete:
            return values >= variable.cardinality / 2
        return values > self.inner.split("train").attributes[name].median()

    @cached_property
    def _index(self) -> dict[str, Tensor]:
        """The rows of the other data set that each split keeps."""
        found = {}
        for number, name in enumerate(SPLITS):
            attributes = self.inner.split(name).attributes
            agrees = self._upper(self.label, attributes[self.label]) == self._upper(self.tie, attributes[self.tie])
            drawn = torch.from_numpy(np.random.default_rng([self.seed, number, _STREAM]).random(len(agrees)))
            keep = agrees | (drawn < (1 - self.strength) / self.strength)
            found[name] = torch.arange(len(agrees)) if name == "test" else keep.nonzero().flatten()
        return found

    def load(self, split: str) -> Mapping[str, Any]:
        rows, index = self.inner.split(split), self._index[split]
        return {**{name: values[index] for name, values in rows.attributes.items()}, "image": kept(rows.images, index)}

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        index, _ = self.intervened(split, index, do)
        return self.inner.true_counterfactual(split, self._index[split][index], do)

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        return self.inner.measure(images)

    def subjects(self, split: str) -> Tensor | None:
        found = self.inner.subjects(split)
        return None if found is None else torch.as_tensor(found)[self._index[split]]

    def masks(self, split: str) -> Tensor | LazyImages | None:
        found = self.inner.masks(split)
        return None if found is None else kept(found, self._index[split])

    def masks_missing(self, split: str) -> str:
        return self.inner.masks_missing(split)

    def environments(self, split: str) -> Tensor | None:
        """Those of the other data set."""
        found = self.inner.environments(split)
        return None if found is None else torch.as_tensor(found)[self._index[split]]

    def shifts(self) -> Mapping[str, Shift]:
        """The tied attribute drawn anew, from the other data set's training values.

        ``independent``: from all of them; ``reversed``: from that half of them which does not go with the class.
        """
        values = self.inner.split("train").attributes[self.tie]
        halves = [values[self._upper(self.tie, values) == upper] for upper in (False, True)]

        def anew(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            return {self.tie: values[torch.randint(len(values), (len(attributes[self.label]),), generator=generator)]}

        if not all(map(len, halves)):
            return {"independent": anew}

        def against(attributes: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
            label = attributes[self.label]
            drawn = [half[torch.randint(len(half), (len(label),), generator=generator)] for half in halves]
            return {self.tie: torch.where(self._upper(self.label, label), *drawn)}

        return {"independent": anew, "reversed": against}
