"""From answers to scores: each family of metrics, with the floors of each figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.base import CausalDataset
from datasets.schema import Variable
from dscm.evaluation.answers import Case, Respondent
from dscm.evaluation.config import LEVELS
from dscm.evaluation.questions import Question
from dscm.evaluation.readings import Reader, Reading
from dscm.metrics.catalogue import summarise
from dscm.metrics.commutativity import commutativity
from dscm.metrics.coverage import HALF_LEVEL, Ensemble, expected_coverage
from dscm.metrics.cycles import Step, composition, reversibility
from dscm.metrics.likelihood import bits_per_dimension
from dscm.metrics.minimality import excess, latent_divergence, misplaced_change, same_value
from dscm.metrics.realism import frechet_distance, real_floor
from dscm.metrics.score import Score
from dscm.metrics.truth import attribute_error, changed_pixels, image_error, inner, psnr, psnr_per_image, ssim
from mechanisms.anticausal.class_scores import class_scores
from mechanisms.training.noise import seeded

LEVEL = 0.9  # nominal coverage of the intervals whose width is told
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What is read off the images of one case; ``truth`` is None where the true images are not known."""

    case: Case
    answer: Reading
    truth: Reading | None


# ------------------------------------------------------------------------------------------------ against the truth
def truth_scores(case: Case, observed: Values, border: int, dataset: CausalDataset) -> Iterator[Score]:
    """Images and attributes against the true ones, beside those of copying the observation."""
    asked = {"intervention": case.name}
    images = {name: inner(x, border) for name, x in (("answer", case.answer["image"]), ("exact", case.with_true_parents),
                                                     ("observed", observed["image"]), ("truth", case.truth["image"]))}
    truth, on_images = images["truth"], {**asked, "settings": {"border": border}}
    copying = image_error(images["observed"], truth)
    yield summarise("truth_l1", image_error(images["answer"], truth), floors={"identity": copying, "truth": 0.0}, **on_images)
    yield summarise("truth_l1_true_parents", image_error(images["exact"], truth), floors={"identity": copying, "truth": 0.0}, **on_images)
    floors = {"identity": psnr(images["observed"], truth), "truth": float("inf")}
    yield summarise("truth_psnr", psnr(images["answer"], truth), count=len(truth), floors=floors, **on_images)
    for metric, measure in (("truth_psnr_image", psnr_per_image), ("truth_ssim", ssim)):
        if metric == "truth_ssim" and min(truth.shape[-2:]) < SMALLEST:
            continue
        floors = {"identity": measure(images["observed"], truth), "truth": measure(truth, truth)}
        yield summarise(metric, measure(images["answer"], truth), floors=floors, **on_images)
    for name in sorted(dataset.schema.descendants([case.question.variable]) - {dataset.schema.image.name}):
        variable, target = dataset.schema[name], case.truth[name]
        floors = {"identity": attribute_error(variable, observed[name], target), "truth": 0.0}
        yield summarise("truth_attribute", attribute_error(variable, case.answer[name], target), variable=name,
                        unit=unit_of(variable), floors=floors, **asked)


SMALLEST = 11  # pixels on a side that the structural similarity's window takes


def unit_of(variable: Variable) -> str:
    """Of an error of this attribute: a share for classes."""
    return "" if variable.discrete else variable.unit


# ------------------------------------------------------------------------------------------------ effectiveness
def effectiveness_scores(seen: Seen, real: Reading, observed: Values, dataset: CausalDataset) -> Iterator[Score]:
    """Attributes read off the counterfactual images against those they should show.

    Floors: the same reading of x (identity) and of the true image (truth) against the same target, and of x against the
    attributes that were observed (real), which is the reader's own error.
    """
    case, target = seen.case, seen.case.target
    asked = {"intervention": case.name, "settings": {"target": "own" if case.truth is None else "true"}}
    for name, values in seen.answer.measured.items():
        variable, read = dataset.schema[name], {"identity": real.measured, **({"truth": seen.truth.measured} if seen.truth else {})}
        floors = {floor: attribute_error(variable, found[name], target[name]) for floor, found in read.items()}
        floors["real"] = attribute_error(variable, real.measured[name], observed[name])
        yield summarise("effectiveness_measured", attribute_error(variable, values, target[name]), variable=name, unit=unit_of(variable),
                        floors=floors, **asked)
    readings = {"identity": real, **({"truth": seen.truth} if seen.truth else {})}
    for name, values in seen.answer.predicted.items():
        variable = dataset.schema[name]
        if variable.discrete:
            yield from _class_scores(name, seen.answer, readings, target[name], observed[name], asked)
            continue
        floors = {floor: attribute_error(variable, read.predicted[name], target[name]) for floor, read in readings.items()}
        floors["real"] = attribute_error(variable, real.predicted[name], observed[name])
        yield summarise("effectiveness_predicted", attribute_error(variable, values, target[name]), variable=name, unit=unit_of(variable),
                        floors=floors, **asked)


def _class_scores(name: str, answer: Reading, readings: Mapping[str, Reading], target: Tensor, observed: Tensor,
                  asked: Mapping[str, object]) -> Iterator[Score]:
    ours = class_scores(answer.probabilities[name], target)
    floors = {floor: class_scores(read.probabilities[name], target) for floor, read in readings.items()}
    floors["real"] = class_scores(readings["identity"].probabilities[name], observed)
    yield summarise("effectiveness_accuracy", ours.correct, variable=name, floors={k: f.correct for k, f in floors.items()}, **asked)
    for metric in ("f1", "auroc"):
        known = {floor: value for floor, scores in floors.items() if (value := getattr(scores, metric)) is not None}
        if (value := getattr(ours, metric)) is not None:
            yield summarise(f"effectiveness_{metric}", value, count=len(target), variable=name, floors=known, **asked)


# ------------------------------------------------------------------------------------------------ minimality, realism
def change_scores(case: Case, observed: Tensor, border: int) -> Iterator[Score]:
    """Change where the truth does not change, and change misplaced, of the pixels within the border."""
    answer, x, truth = (inner(images, border) for images in (case.answer["image"], observed, case.truth["image"]))
    asked = {"intervention": case.name, "settings": {"border": border}}
    # changes of one grey level are none, so that the truth itself has a little
    yield summarise("minimality_excess", excess(answer, x, truth), floors={"identity": 0.0, "truth": excess(truth, x, truth)}, **asked)
    misplaced = misplaced_change(answer, x, truth)
    if len(misplaced):
        yield summarise("minimality_misplaced", misplaced, floors={"identity": 1.0, "truth": 0.0}, **asked)


@dataclass(frozen=True)
class Crowd:
    """As many other real images as are compared with them, drawn at random: neighbouring rows may show one subject.

    Attributes:
        chosen: positions ``(N,)`` among the rows that are asked about.
        features, attributes: of N other real images.
    """

    chosen: Tensor
    features: Tensor
    attributes: Values


def divergence_score(seen: Seen, real: Reading, observed: Values, crowd: Crowd, variable: Variable) -> Score:
    """Counterfactual latent divergence among the crowd.

    Raises:
        SchemaError: where it has no image of some value.
    """
    chosen, x, rest = crowd.chosen, real.features[crowd.chosen], crowd.attributes[variable.name]
    like = [same_value(values[chosen], rest, variable.discrete) for values in (observed[variable.name], seen.case.question.values)]
    read = {"answer": seen.answer, "identity": real, **({"truth": seen.truth} if seen.truth else {})}
    found = {name: latent_divergence(x, reading.features[chosen], crowd.features, *like) for name, reading in read.items()}
    return summarise("minimality_cld", found.pop("answer"), intervention=seen.case.name, floors=found)


def realism_score(seen: Seen, real: Reading, crowd: Crowd, floor: float) -> Score:
    """Fréchet distance of as many counterfactual images as real ones; ``floor`` is that of :func:`realism_floor`.

    Raises:
        SchemaError: for too few images.
    """
    read = {"answer": seen.answer, "identity": real, **({"truth": seen.truth} if seen.truth else {})}
    found = {name: frechet_distance(reading.features[crowd.chosen], crowd.features) for name, reading in read.items()}
    return summarise("realism_frechet", found.pop("answer"), count=len(crowd.chosen), intervention=seen.case.name,
                     floors={**found, "real": floor})


def realism_floor(real: Reading, crowd: Crowd, seed: int) -> float:
    """The same distance between two sets of as many real images."""
    return real_floor(torch.cat([real.features[crowd.chosen], crowd.features]), len(crowd.chosen), seeded(seed))


# ------------------------------------------------------------------------------------------------ axioms
def composition_scores(respondent: Respondent, borders: Sequence[int]) -> Iterator[Score]:
    """L1 after repeated null interventions, at each temperature, with and without the border."""
    for temperature in respondent.temperatures:
        images, step = respondent.null_steps(temperature)
        made: list[Tensor] = []
        whole = composition(images, keeping(step, made), respondent.config.cycles)
        for cycle, errors in whole.items():
            yield from _both_borders("composition_l1", errors, made[cycle - 1], images, borders, temperature, {"cycles": cycle}, "")


def reversibility_scores(respondent: Respondent, question: Question, borders: Sequence[int]) -> Iterator[Score]:
    """L1 after steps there and back, at each temperature, with and without the border."""
    for temperature in respondent.temperatures:
        images, forward, backward = respondent.round_trip(question, temperature)
        made: list[Tensor] = []
        whole = reversibility(images, forward, keeping(backward, made), respondent.config.steps)
        for step, errors in whole.items():
            yield from _both_borders("reversibility_l1", errors, made[step // 2 - 1], images, borders, temperature, {"steps": step},
                                     question.name)


def keeping(step: Step, made: list[Tensor]) -> Step:
    """``step``, which also keeps what it makes."""

    def kept(images: Tensor) -> Tensor:
        made.append(step(images))
        return made[-1]

    return kept


def _both_borders(metric: str, whole: Tensor, images: Tensor, observed: Tensor, borders: Sequence[int], temperature: float | None,
                  settings: Mapping[str, float], intervention: str) -> Iterator[Score]:
    tempered = {} if temperature is None else {"temperature": temperature}
    for border in borders:
        errors = image_error(inner(images, border), inner(observed, border)) if border else whole
        yield summarise(metric, errors, intervention=intervention, settings={**settings, **tempered, "border": border},
                        floors={"identity": 0.0, "truth": 0.0})


def commutativity_scores(respondent: Respondent, one: Question, other: Question, border: int) -> Iterator[Score]:
    """L1 between two orders of two interventions, and between each order and both at once."""
    images = respondent.in_either_order(one, other)
    distances = commutativity(*(inner(x, border) for x in images))
    asked = {"intervention": f"do({one.variable}, {other.variable})", "floors": {"identity": 0.0, "truth": 0.0}}
    yield summarise("commutativity_l1", distances.orders, settings={"border": border}, **asked)
    for first, errors in ((one, distances.first), (other, distances.second)):
        yield summarise("commutativity_joint_l1", errors, settings={"border": border, "first": first.name}, **asked)


# ------------------------------------------------------------------------------------------------ likelihood, calibration
def free_energy_scores(nats: Tensor, dimensions: int) -> Iterator[Score]:
    """In bits and, as training logs it, in nats per dimension."""
    yield summarise("free_energy", bits_per_dimension(nats, dimensions))
    yield summarise("free_energy", nats / dimensions, unit="nats/dim", settings={"logarithm": "natural"})


def calibration_scores(case: Case, draws: Tensor, observed: Tensor, truth_read: Reading, real: Reading, border: int, reader: Reader,
                       dataset: CausalDataset) -> Iterator[Score]:
    """Whether the truth lies among the draws ``(K, n, C, H, W)`` as often as it should, pixels and measured attributes.

    Of a measured attribute, the truth is the measurement on the true image: a measurement's own bias is not the model's.
    """
    count, size = len(draws), draws.shape[1]
    x, truth = (inner(images[:size], border) for images in (observed, case.truth["image"]))
    pixels, changed = Ensemble(inner(draws, border) * 255), changed_pixels(x, truth)
    asked = {"intervention": case.name, "settings": {"draws": count, "border": border}}
    for level in LEVELS:
        told = _interval(count, level)
        share = pixels.coverage(truth * 255, level, HALF_LEVEL * 255, method="weibull")
        yield summarise("coverage_pixel", share, intervention=case.name, **_with(told, border=border))
        if changed.any():
            share = pixels.coverage(truth * 255, level, HALF_LEVEL * 255, changed, "weibull")
            yield summarise("coverage_changed_pixel", share, intervention=case.name, **_with(told, border=border))
    yield summarise("width_pixel", pixels.width(LEVEL, method="weibull"), intervention=case.name,
                    settings={"draws": count, "level": LEVEL, "border": border})
    yield summarise("crps_pixel", pixels.crps(truth * 255), floors={"identity": image_error(x, truth), "truth": 0.0}, **asked)
    measured = reader.measure(draws.flatten(0, 1))
    for name, values in measured.items():
        variable = dataset.schema[name]
        if variable.discrete:
            continue
        target, ensemble = truth_read.measured[name][:size], Ensemble(values.view(count, size))
        named = {"intervention": case.name, "variable": name}
        for level in LEVELS:
            share = ensemble.coverage(target, level, method="weibull")
            yield summarise("coverage_attribute", share, **named, **_interval(count, level))
        yield summarise("width_attribute", ensemble.width(LEVEL, method="weibull"), unit=variable.unit, **named,
                        settings={"draws": count, "level": LEVEL})
        floors = {"identity": (real.measured[name][:size] - target).abs(), "truth": 0.0}
        yield summarise("crps_attribute", ensemble.crps(target), unit=variable.unit, settings={"draws": count}, floors=floors, **named)


def _interval(draws: int, level: float) -> dict[str, object]:
    """What a coverage is near to if the draws are right: the level, or less where they are too few for it."""
    return {"settings": {"draws": draws, "level": level}, "better": f"{level:g}",
            "floors": {"ideal": expected_coverage(draws, level, "weibull")}}


def _with(told: Mapping[str, object], **settings: float) -> dict[str, object]:
    return {**told, "settings": {**told["settings"], **settings}}
