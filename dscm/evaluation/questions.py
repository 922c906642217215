"""The interventions that models are asked about: drawn once, saved, and shared by all models.

Figures of two models can be compared only if both answered the same questions about the same images. A file of
questions therefore carries its seed and a fingerprint of the rows that it concerns, and is refused for any others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.base import CausalDataset, fingerprint
from datasets.schema import SchemaError, Variable
from mechanisms.runs.files import RunError, damaged, read_json, understanding, write_json
from mechanisms.training.noise import seeded

FORMAT = 1
AWAY = 0.1  # of a standard deviation: how far a drawn value is from the observed one at least
_TRIES = 50


@dataclass(frozen=True)
class Question:
    """``do(variable = values)`` on the rows ``index`` of a split, both ``(B,)``."""

    variable: str
    index: Tensor
    values: Tensor

    @property
    def name(self) -> str:
        return f"do({self.variable})"

    @property
    def do(self) -> dict[str, Tensor]:
        return {self.variable: self.values}

    def first(self, count: int) -> Question:
        """The same question about the first ``count`` rows only."""
        return Question(self.variable, self.index[:count], self.values[:count])


@dataclass(frozen=True)
class Questions:
    """One question for each variable that can change the image, all about the same rows.

    Attributes:
        dataset, split, seed: where the rows and the draws come from.
        fingerprint: of the rows themselves, images included.
    """

    dataset: str
    split: str
    seed: int
    fingerprint: str
    questions: tuple[Question, ...]

    @property
    def index(self) -> Tensor:
        """The rows, ``(B,)``."""
        return self.questions[0].index

    def __len__(self) -> int:
        return len(self.index)

    def save(self, path: Path) -> None:
        """Write them to a JSON file, whole or not at all."""
        interventions = [{"variable": q.variable, "values": q.values.tolist()} for q in self.questions]
        write_json(path, {"kind": "interventions", "format": FORMAT, "dataset": self.dataset, "split": self.split, "seed": self.seed,
                          "fingerprint": self.fingerprint, "index": self.index.tolist(), "interventions": interventions})

    @classmethod
    def load(cls, path: Path, dataset: CausalDataset, split: str | None = None) -> Questions:
        """What :meth:`save` wrote, checked against the data set that it is to be asked about.

        Raises:
            RunError: for a file that is no file of interventions, or one about other rows: of another data set, of
                another split than ``split``, or of other images.
            SchemaError: for variables or values that the graph does not have.
        """
        again = "Draw new interventions into another file"
        state = read_json(path, {}, again)
        if state.get("kind") != "interventions" or state.get("format") != FORMAT:
            raise RunError(f"{path} is not a file of interventions (format {FORMAT}); dscm.evaluate --interventions FILE writes one")
        read_json(path, {"dataset": str, "split": str, "seed": int, "fingerprint": str, "index": list, "interventions": list}, again)
        if state["dataset"] != dataset.title:
            raise RunError(f"{path} asks about {state['dataset']}, not about {dataset.title}; choose another file")
        if split is not None and state["split"] != split:
            raise RunError(f"{path} asks about the {state['split']} split, not the {split} split; choose another file or --split")
        rows = dataset.split(state["split"])
        with understanding(path, again):
            index = torch.tensor(state["index"], dtype=torch.long).view(len(state["index"]))
        if not len(index) or int(index.min()) < 0 or int(index.max()) >= len(rows):
            raise RunError(f"{path} asks about rows that the {state['split']} split of {dataset.title} (it has {len(rows)}) does not have")
        if fingerprint(rows, index) != state["fingerprint"]:
            raise RunError(f"{path} was drawn for other rows of {dataset.title}'s {state['split']} split: its options (seed, digits, "
                           "renderings, folder) have changed since. Draw new interventions into another file")
        questions = []
        for entry in state["interventions"]:
            if not isinstance(entry, dict) or not isinstance(entry.get("variable"), str) or not isinstance(entry.get("values"), list):
                raise damaged(path, "it holds an intervention without variable or values", again)
            variable = dataset.schema[entry["variable"]]
            questions.append(Question(variable.name, index, variable.check(entry["values"], str(path))))
            if len(questions[-1].values) != len(index):
                raise RunError(f"{path} has {len(questions[-1].values)} values of {variable.name} for {len(index)} rows; draw it anew")
        return cls(state["dataset"], state["split"], state["seed"], state["fingerprint"], tuple(questions))

    def about(self) -> dict[str, Any]:
        """Plain values that say which questions these are."""
        return {"split": self.split, "seed": self.seed, "fingerprint": self.fingerprint, "count": len(self),
                "variables": [q.variable for q in self.questions]}


def draw_questions(dataset: CausalDataset, split: str = "test", count: int = 1000, seed: int = 0) -> Questions:
    """One intervention for each attribute that can change the image, in the order of the graph.

    They concern the first ``count`` rows: in a generated split of D digits, rows 0..D−1 show different digits. Values come
    from the training split's marginal, so that no model has to extrapolate in the variable itself, and are drawn again
    where they are within a tenth of a standard deviation of the observed one; classes are drawn uniformly among the
    other ones that training has shown. They are a function of data set, split, count and seed alone.

    Raises:
        SchemaError: for a count below 2 (no standard error) or larger than the split, or an unknown split.
    """
    observed = dataset.split(split)
    if not 2 <= count <= len(observed):
        raise SchemaError(f"count={count}: the {split} split of {dataset.title} has {len(observed)} rows; take 2..{len(observed)}")
    index, training, drawn = torch.arange(count), dataset.split("train").attributes, []
    for position, variable in enumerate(dataset.graph.attributes):
        if dataset.schema.image.name not in dataset.schema.descendants([variable.name]):
            continue
        generator, present = seeded(seed, position), observed.attributes[variable.name][:count]
        draw = _other_classes if variable.discrete else _other_values
        drawn.append(Question(variable.name, index, draw(variable, training[variable.name], present, generator)))
    if not drawn:
        raise SchemaError(f"nothing to ask of {dataset.title}: in its graph, no attribute causes the image")
    return Questions(dataset.title, split, seed, fingerprint(observed, index), tuple(drawn))


def _other_values(variable: Variable, pool: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
    values, near, apart = torch.empty_like(present), torch.ones(len(present), dtype=torch.bool), AWAY * variable.statistics.std
    for _ in range(_TRIES):
        values[near] = pool[torch.randint(len(pool), (int(near.sum()),), generator=generator)]
        near = (values - present).abs() < apart
        if not near.any():
            return values
    for row in near.nonzero().flatten():  # nearly all of training has the value that these rows have
        others = pool[(pool - present[row]).abs() >= apart]
        if not len(others):
            raise SchemaError(f"training shows no value of {variable.name} but {float(present[row]):g}; drop it from the graph")
        values[row] = others[int(torch.randint(len(others), (1,), generator=generator))]
    return values


def _other_classes(variable: Variable, pool: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
    seen = (torch.bincount(pool, minlength=variable.cardinality) > 0).float()
    weights = seen.repeat(len(present), 1)
    weights[torch.arange(len(present)), present] = 0
    if not (weights.sum(1) > 0).all():
        raise SchemaError(f"training shows one class of {variable.name} only, so there is no other to ask about; drop it from the graph")
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)
