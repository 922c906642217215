"""A data set with its causal story: what every file in this folder, and a user's own file, provides.

One class, one file: the variables with their parents, ``load(split)``, and — where the process that made the data is
known — the true counterfactual and a measurement of attributes on any image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.columns import identities, in_order
from datasets.files.lazyrows import CheckedRows, SoundRows, check_images, check_row
from datasets.ranges import check_ranges
from datasets.schema import Graph, SchemaError, Variable
from datasets.split import LazyImages, Split, as_uint8, fingerprint, is_array, with_columns
from datasets.userfile import PREFIX, told_as_theirs

__all__ = ["SPLITS", "CausalDataset", "LazyImages", "Shift", "Split", "apart", "as_uint8", "fingerprint", "is_array", "with_columns"]
SPLITS = ("train", "valid", "test")
_FINGERPRINTED = 64  # rows
_AT_ONCE = 4096  # rows that the true process makes at once
Shift = Callable[[Mapping[str, Tensor], torch.Generator], dict[str, Tensor]]


class CausalDataset:
    """Base class of all data sets.

    A subclass states ``variables`` and :meth:`load`. Options, if any, are the fields of a dataclass, so that a command
    line's ``--option KEY=VALUE`` can set them.

    Attributes:
        name: registered name; a user's own file needs none.
        variables: the graph; exactly one variable is named ``image`` and of that kind.
        true_images_under: names for which ``do(name)``, alone or together, has a true counterfactual image.
        border: rows and columns of constant padding on each side of an image, which scores leave out.
        label: the discrete attribute that classifiers predict; empty where there is no such task.
        spurious: attributes that go with the label in training, but must not matter to a classifier.
        lookalike: another data set of almost the same name, which messages about this one mention.
        recipes: algorithm → settings that were published for this data set, as plain values; see :mod:`experiments.train`.
    """

    name: ClassVar[str] = ""
    variables: ClassVar[tuple[Variable, ...]] = ()
    true_images_under: ClassVar[tuple[str, ...]] = ()
    border: ClassVar[int] = 0
    label: ClassVar[str] = ""
    spurious: ClassVar[tuple[str, ...]] = ()
    lookalike: ClassVar[str] = ""
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_ranges(self, lambda option, value: f"{self.named_apart}: {option}={value}", SchemaError)

    # ------------------------------------------------------------------------------------------------ to provide
    def load(self, split: str) -> Mapping[str, Any]:
        """``{variable: array}`` of one split, ``train``, ``valid`` or ``test``.

        Attributes are ``(N,)`` in physical units; images are ``(N, H, W)``, ``(N, H, W, C)``/``(N, C, H, W)`` uint8 or
        float in [0, 1], or :class:`LazyImages`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load(split)")

    def true_counterfactual(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The true counterfactual of rows ``index`` of a split under ``do`` (physical units, ``(B,)`` each).

        Returns every attribute ``(B,)`` and ``image``, float in [0, 1], ``(B, C, H, W)``.

        Raises:
            SchemaError: where the process is not known, or the intervention has no image truth.
        """
        raise SchemaError(f"{self.named_apart} does not know its own process, so it has no true counterfactuals")

    def true_worlds(self, split: str, index: Tensor, do: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """:meth:`true_counterfactual` of many rows, made some thousand at a time."""
        told = [self.true_counterfactual(split, index[part], {name: value[part] for name, value in do.items()})
                for part in torch.arange(len(index)).split(_AT_ONCE)]
        return {name: torch.cat([world[name] for world in told]) for name in told[0]}

    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """Attributes read off images (float in [0, 1], ``(B, C, H, W)``) without a network; ``{}`` if none can be."""
        return {}

    def subjects(self, split: str) -> Tensor | None:
        """Which digit, patient, … each row of a split shows, ``(N,)`` integers or words; None if every row shows its own.

        Rows of one subject are alike, so standard errors hold for figures of distinct subjects only. Ask for them through
        :meth:`distinct_subjects`.
        """
        return None

    def masks(self, split: str) -> Tensor | LazyImages | None:
        """Where the foreground of each image of a split is, bool ``(N, H, W)``, or lazily ``(H, W)`` each; None if unknown.

        The foreground is what causes the label; a bounding box is a mask too. Read them through
        :meth:`datasets.task.Task.masks`, which checks them.
        """
        return None

    def masks_missing(self, split: str) -> str:
        """Why :meth:`masks` of a split is None, and what to do about it, for messages; empty if there is nothing more to say."""
        return ""

    def environments(self, split: str) -> Tensor | None:
        """Which environment each row of a split comes from, ``(N,)`` integers from 0; None if there is only one.

        Environments differ in how causes are distributed, not in how the label arises from them. Read them through
        :meth:`datasets.task.Task.environments`, which checks them.
        """
        return None

    def shifts(self) -> Mapping[str, Shift]:
        """Test distributions that are known by a name, as interventions: ``{name: (attributes, generator) → do}``.

        A shift is given the attributes ``{name: (B,)}`` of observed rows and returns the values to set, ``(B,)`` each.
        Ask for them through :meth:`datasets.task.Task.shifted`, which checks them.
        """
        return {}

    def has_truth(self, names: Sequence[str]) -> bool:
        """Whether ``do`` of exactly these variables has a true counterfactual image."""
        return bool(names) and all(n in self.true_images_under for n in names)

    # ------------------------------------------------------------------------------------------------ derived
    def intervened(self, split: str, index: Tensor, do: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Where a true counterfactual begins: rows ``index (B,)``, and their observation with the values of ``do`` set.

        Nothing follows yet: descendants and the image are as observed.

        Raises:
            SchemaError: for rows that the split does not have, variables without true images, values without support, or
                neither one value nor one a row.
        """
        rows = self.split(split)
        index = torch.as_tensor(index).reshape(-1).long().cpu()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(rows):
            raise SchemaError(f"rows {int(index.min())}..{int(index.max())}: no such row in the {split} split of "
                              f"{self.named_apart}, which has {len(rows)}")
        observed = rows.batch(index)
        for name, value in do.items():
            if name not in self.true_images_under:
                known = ", ".join(self.true_images_under)
                raise SchemaError(f"do({self.schema[name].name}) has no true image in {self.named_apart}; only {known} have")
            value = self.schema[name].check(value, "do")
            if len(value) not in (1, len(index)):
                raise SchemaError(f"do({name}) has {len(value)} values for {len(index)} rows; give one, or one a row")
            observed[name] = value.cpu().expand(len(index)).clone()
        return index, observed

    def distinct_subjects(self, split: str) -> Tensor | None:
        """:meth:`subjects`, checked, int64 ``(N,)``; where they are words, numbers in their place.

        Raises:
            SchemaError: for what is not one subject a row.
        """
        if (found := self.subjects(split)) is None:
            return None
        where, rows = f"subjects({split!r}) of {self.named_apart}", len(self.split(split))
        found = identities(found, where, "")
        if len(found) != rows:
            raise SchemaError(f"{where} has {len(found)} rows; the split has {rows}: return one subject for each")
        return found

    @property
    def title(self) -> str:
        return self.name or type(self).__name__

    @property
    def named_apart(self) -> str:
        """:attr:`title` for messages: with the data set that it is easily taken for."""
        return apart(self.title, type(self))

    @cached_property
    def training_fingerprint(self) -> str:
        """A hash of the first training rows, images included, by which data of equal statistics are told apart."""
        rows = self.split("train")
        return fingerprint(rows, torch.arange(min(_FINGERPRINTED, len(rows))), lazy=True)

    @property
    def answered_by(self) -> CausalDataset:
        """The data set whose models answer for this one: itself, unless its rows are a selection of another's."""
        return self

    @cached_property
    def schema(self) -> Graph:
        """The checked graph, without statistics."""
        try:
            graph = Graph(self.variables)
        except SchemaError as error:
            raise SchemaError(f"{self.named_apart}: {error}") from None
        if graph.image.name != "image":
            raise SchemaError(f"{self.named_apart}: name the image variable 'image', not {graph.image.name!r}")
        unknown = [n for n in self.true_images_under if n not in graph]
        if unknown:
            raise SchemaError(f"{self.named_apart}: true_images_under names unknown variables: {', '.join(unknown)}")
        return graph

    @cached_property
    def graph(self) -> Graph:
        """The graph with statistics of the training split."""
        return self.schema.fitted(self.split("train").attributes)

    def split(self, name: str) -> Split:
        """A checked split; loaded once."""
        if name not in SPLITS:
            raise SchemaError(f"unknown split {name!r}; valid are {', '.join(SPLITS)}")
        if name not in self._splits:
            with told_as_theirs(self._own_file, f"the {name} split of {self.named_apart}"):
                raw = self.load(name)
            with told_as_theirs(None, f"the {name} split of {self.named_apart}"):
                self._splits[name] = self._checked(name, raw)
        return self._splits[name]

    @property
    def _own_file(self) -> Path | None:
        """The user's file that defines this data set; None for one of ours."""
        module = type(self).__module__
        return Path(sys.modules[module].__file__) if module.startswith(PREFIX) else None

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {}

    def _checked(self, name: str, raw: Mapping[str, Any]) -> Split:
        where = f"the {name} split of {self.named_apart}"
        if not isinstance(raw, Mapping):
            raise SchemaError(f"{where}: load({name!r}) returned a {type(raw).__name__}; it returns a mapping of names to arrays: "
                              f"{', '.join(v.name for v in self.schema)}")
        unknown = [k for k in raw if k not in self.schema]
        if unknown or "image" not in raw:
            wrong = f"unknown {', '.join(unknown)}" if unknown else "no 'image'"
            raise SchemaError(f"{where} has {wrong}; load(split) returns {', '.join(v.name for v in self.schema)}")
        images, shape = in_order(raw["image"]), self.schema.image.shape
        check_images(images, shape, where)
        if len(images) == 0:
            raise SchemaError(f"{where} is empty")
        if is_array(images):
            images = as_uint8(images, self.schema.image, where)
        else:
            images = images if isinstance(images, SoundRows) else CheckedRows(images, shape, where)
            check_row(torch.as_tensor(images[0]), 0, shape, where)
        attributes = {name: values.detach() for name, values in self.schema.check(raw, where).items()}
        for attribute, values in attributes.items():
            if len(values) != len(images):
                raise SchemaError(f"{where} has {len(images)} images but {len(values)} values of {attribute!r}")
        return Split(name, images, attributes)


def apart(name: str, kind: type[CausalDataset]) -> str:
    """``name`` of a data set of this class, with the one that it is easily taken for: ``coloredmnist (not colourmnist)``."""
    return f"{name} (not {kind.lookalike})" if kind.lookalike else name
