"""A model's answers: one encoder pass over the observed images, and every question put to its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from datasets.base import CausalDataset
from dscm.capabilities import Model
from dscm.evaluation.config import EvaluationConfig
from dscm.evaluation.questions import Question
from dscm.metrics.composition import Step
from dscm.results import Counterfactual, Exogenous
from mechanisms.runs.files import RunError
from mechanisms.training.noise import seeded

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One question, the model's answer and what is known of the true one, all on the CPU.

    Attributes:
        answer: attributes ``(B,)`` and ``image`` ``(B, C, H, W)``.
        truth: the true counterfactual, attributes and ``image``; None where it is not known.
        with_true_parents: the model's image under the *true* attributes, which leaves the image mechanism's own error.
    """

    question: Question
    answer: Values
    truth: Values | None
    with_true_parents: Tensor | None

    @property
    def name(self) -> str:
        return self.question.name

    @property
    def target(self) -> Values:
        """The attributes that the image should show: the true ones where they are known, else the model's own."""
        return self.answer if self.truth is None else self.truth


class Evaluator:
    """A model with the observation that it is evaluated on; it asks for nothing beyond the model's capabilities.

    Raises:
        RunError: for a temperature or an effect that the model does not take; from every method, for answers that are not finite, naming
            the question and the first such row.
    """

    def __init__(self, model: Model, observed: Values, config: EvaluationConfig, seed: int) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.observed = {name: value.to(model.device) for name, value in observed.items()}
        self.images = self.observed["image"]
        takes = {"temperature": model.capabilities.temperature or config.temperature == 1,
                 "effect": config.effect in model.capabilities.effects}
        for name in (name for name, taken in takes.items() if not taken):
            raise RunError(f"{type(model).__name__}.counterfactual takes no {name}, so --{name} {getattr(config, name)} "
                           "cannot be had; leave it out")

    @property
    def temperatures(self) -> tuple[float | None, ...]:
        """Residual temperatures to ask for; None alone of a model that has no such thing."""
        return self.config.temperatures if self.model.capabilities.temperature else (None,)

    @cached_property
    def noise(self) -> Exogenous | None:
        """The one encoder pass over all observed images; None of a model that offers none."""
        if not self.model.capabilities.abduct:
            return None
        return self.model.abduct(self.observed, self._generator(), batch_size=self.config.batch_size)

    def first(self, count: int) -> dict[str, Tensor]:
        """The observation's first rows."""
        return {name: value[:count] for name, value in self.observed.items()}

    # ------------------------------------------------------------------------------------------------ one answer
    def case(self, question: Question, dataset: CausalDataset, split: str) -> Case:
        """The answer to a question beside the truth; one call of the image mechanism where the SCM errs in no parent."""
        answer = self._ask(self.observed, question.do, question.name, noise=self.noise)
        world = {name: values.cpu() for name, values in {**answer.attributes, "image": answer.image}.items()}
        if not dataset.has_truth([question.variable]):
            return Case(question, world, None, None)
        truth = dataset.true_counterfactual(split, question.index, question.do)
        parents = [name for name in self.affected(question.variable) if name in self.model.graph.image.parents]
        if all(torch.equal(truth[name], world[name]) for name in parents):
            return Case(question, world, truth, world["image"])
        exact = self._ask(self.observed, {name: truth[name] for name in parents}, f"{question.name} with true parents", noise=self.noise)
        return Case(question, world, truth, exact.image.cpu())

    def affected(self, *names: str) -> list[str]:
        """Attributes that an intervention on ``names`` sets or changes, causes before effects."""
        changed = {*names, *self.model.graph.descendants(names)}
        return [v.name for v in self.model.graph.attributes if v.name in changed]

    def drawn(self, questions: list[Question]) -> Iterator[tuple[Question, Tensor]]:
        """Each question with K answers ``(K, n, C, H, W)`` of its first n images; one encoder pass for all questions.

        Images go block by block: K draws of all latents of all images would not fit in memory where images are large.
        """
        count, draws = min(self.config.draw_images, len(self.images)), self.config.draws
        streams = [seeded(self.seed, 1 + k) for k in range(len(questions))]
        abducting, parts = self._generator(), [[] for _ in questions]
        for block in torch.arange(count).split(max(1, 4 * self.config.batch_size // draws)):
            observed, noise = {name: values[block] for name, values in self.observed.items()}, None
            if self.noise is not None:
                noise = self.model.abduct(observed, abducting, draws, self.config.batch_size)
            for question, stream, part in zip(questions, streams, parts, strict=True):
                do, where = {question.variable: question.values[block]}, f"draws under {question.name}"
                part.append(self._ask(observed, do, where, noise=noise, draws=draws, generator=stream).draws.cpu())
        yield from ((question, torch.cat(part, 1)) for question, part in zip(questions, parts, strict=True))

    # ------------------------------------------------------------------------------------------------ again and again
    def null_steps(self, temperature: float | None) -> tuple[Tensor, Step]:
        """The first images, and the null intervention that can be repeated from them; its first pass shares the encoder's."""
        count = min(self.config.cycle_images, len(self.images))
        world, noises = self.first(count), _once(_rows(self.noise, count))

        def step(images: Tensor) -> Tensor:
            keywords = {"temperature": temperature, "noise": next(noises)}
            image = self.model.regenerate({**world, "image": images}, generator=self._generator(), batch_size=self.config.batch_size,
                                          **{name: value for name, value in keywords.items() if value is not None})
            return _finite(image, "image under the null intervention").clamp(0, 1)

        return world["image"], step

    def round_trip(self, question: Question, temperature: float | None) -> tuple[Tensor, Step, Step]:
        """The first images, the way to what is asked, and the way back to the attributes that were observed.

        The way back sets every attribute that the way there changed, so that no error of the attributes' model enters.
        """
        count = min(self.config.cycle_images, len(self.images))
        world, noises = self.first(count), _once(_rows(self.noise, count))
        ways = (question.first(count).do, {name: world[name] for name in self.affected(question.variable)})
        images, present = world["image"], [world]

        def way(do: Values) -> Step:
            def step(images: Tensor) -> Tensor:
                present[0] = self._next({**present[0], "image": images}, do, f"{question.name} and back", next(noises), temperature)
                return present[0]["image"]

            return step

        return images, way(ways[0]), way(ways[1])

    def in_either_order(self, one: Question, other: Question) -> tuple[Tensor, Tensor, Tensor]:
        """The first images under ``one`` then ``other``, ``other`` then ``one``, and both at once, ``(n, C, H, W)`` each.

        The first intervention stays in force during the second one, and all three end with the same attributes.
        """
        count = min(self.config.cycle_images, len(self.images))
        world, noise, name = self.first(count), _rows(self.noise, count), f"do({one.variable}, {other.variable})"
        joint = self._next(world, {**one.first(count).do, **other.first(count).do}, name, noise)
        both = {changed: joint[changed] for changed in self.affected(one.variable, other.variable)}
        ends = [self._next(self._next(world, first.first(count).do, name, noise), both, name)["image"] for first in (one, other)]
        return ends[0], ends[1], joint["image"]

    def _next(self, world: Values, do: Values, where: str, noise: Exogenous | None = None,
              temperature: float | None = None) -> dict[str, Tensor]:
        """The answer as an observation, from which one can go on."""
        answer = self._ask(world, do, where, noise=noise, temperature=temperature)
        return {**answer.attributes, "image": answer.image.clamp(0, 1)}

    # ------------------------------------------------------------------------------------------------ the density
    def free_energy(self) -> Tensor:
        """−log p(x | parents) of the observed images, or an upper bound of it with one draw of z, nats, ``(B,)``."""
        generator, size = self._generator(), self.config.batch_size
        chunks = torch.arange(len(self.images), device=self.images.device).split(size)
        parts = [-self.model.log_prob({n: v[rows] for n, v in self.observed.items()}, generator)["image"] for rows in chunks]
        return _finite(torch.cat(parts), "free energy")

    def _generator(self, purpose: int = 0) -> torch.Generator:
        """A stream of its own for abduction (0) and for what is drawn afterwards (1)."""
        return seeded(self.seed, purpose)

    def _ask(self, observed: Values, do: Values, where: str, noise: Exogenous | None = None, draws: int | None = None,
             temperature: float | None = None, generator: torch.Generator | None = None) -> Counterfactual:
        """One call of the model, with what it takes; ``temperature`` and ``generator`` if not the evaluation's own."""
        can = self.model.capabilities
        keywords: dict[str, Any] = {} if noise is None else {"noise": noise}
        if draws is not None:
            keywords["draws"] = draws
        if can.temperature:
            keywords["temperature"] = self.config.temperature if temperature is None else temperature
        if can.effects != ("total",):
            keywords["effect"] = self.config.effect
        answer = self.model.counterfactual(observed, do, generator=generator or self._generator(1), batch_size=self.config.batch_size,
                                           **keywords)
        _finite(answer.image, f"counterfactual image under {where}")
        for name, values in answer.attributes.items():
            _finite(values, f"counterfactual {name} under {where}")
        return answer


def _rows(noise: Exogenous | None, count: int) -> Exogenous | None:
    """The noise of the first ``count`` rows."""
    if noise is None:
        return None
    return Exogenous({name: u[:count] for name, u in noise.attributes.items()}, noise.image.rows(slice(count)))


def _once(noise: Exogenous | None) -> Iterator[Exogenous | None]:
    """The noise of the world one starts from, and None for every later one, which has to be abducted anew."""
    yield noise
    yield from repeat(None)


def _finite(values: Tensor, what: str) -> Tensor:
    """``values (B, …)`` as they are.

    Raises:
        RunError: for NaN or infinity among them.
    """
    if not values.is_floating_point():
        return values
    wrong = ~torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else ~torch.isfinite(values)
    if wrong.any():
        raise RunError(f"the model's {what} is not finite in {int(wrong.sum())} of {len(values)} rows, first in row "
                       f"{int(wrong.nonzero()[0])}; look for a diverged training, or evaluate an earlier checkpoint")
    return values
