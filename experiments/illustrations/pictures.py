"""The pictures of docs/metrics.md: on the same images, models that a metric tells apart, and those that it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dscm.evaluation.answers import Evaluator
from dscm.evaluation.table import figure as in_figures
from dscm.figures.style import BLUE, INK, ORANGE, PALE, page, tidy, written
from dscm.metrics.commutativity import commutativity
from dscm.metrics.composition import composition, keeping
from dscm.metrics.coverage import LEVEL, Ensemble, calibration_scores
from dscm.metrics.likelihood import bits_per_dimension
from dscm.metrics.minimality import excess, latent_divergence, misplaced_change
from dscm.metrics.realism import realism_floor, realism_score
from dscm.metrics.registry import summarise
from dscm.metrics.reversibility import reversibility
from dscm.metrics.score import Score
from dscm.metrics.truth import image_error, inner, psnr_per_image, ssim
from dscm.model import DSCM
from experiments.illustrations.scene import BLUR, COPY, NEAREST, TRUE, Scene
from experiments.illustrations.sheet import Cell, Line, Sheet

Picture = Callable[[Scene], Figure]
PICTURES: dict[str, Picture] = {}
_CROWD = 6  # images of a set that are shown
_SMALL = 0.85  # inches of images in wide pictures


def picture(name: str) -> Callable[[Picture], Picture]:
    """Register a picture. It raises SchemaError where it cannot be drawn, with the reason."""

    def register(function: Picture) -> Picture:
        PICTURES[name] = function
        return function

    return register


def _means(scene: Scene, each: Sequence[Sequence[tuple[str, Score]]]) -> Line:
    """The last row of a sheet: for each column, lines with the mean of a score and its standard error in place of {}."""
    return Line(f"mean of {len(scene.questions)}", [Cell(lines=[text.format(in_figures(s)) for text, s in column]) for column in each])


def _error(scene: Scene, images: Tensor, target: Tensor) -> Tensor:
    """L1 of 255 within the border, ``(B,)``, on the CPU."""
    return image_error(inner(images, scene.border), inner(target, scene.border)).cpu()


# ------------------------------------------------------------------------------------------------ against the truth
@picture("truth")
def truth(scene: Scene) -> Figure:
    """A sharp answer and a blurred truth of equal PSNR."""
    names, target = [COPY, TRUE, *scene.models, BLUR], inner(scene.truth["image"][scene.shown], scene.border)
    lines = {}
    for name in names:
        images = inner(scene.image(name)[scene.shown], scene.border)
        each = zip(image_error(images, target), psnr_per_image(images, target), ssim(images, target), strict=True)
        lines[name] = [(f"L1 {l1:.1f}", f"PSNR {db:.1f} dB", f"SSIM {like:.3f}") for l1, db, like in each]
    rows = [Line("", [Cell(scene.image(name)[r], lines[name][k]) for name in names]) for k, r in enumerate(scene.shown)]
    scores = [scene.truth_scores(name) for name in names]
    means = _means(scene, [(("L1 {}", s["truth_l1"]), ("PSNR {} dB", s["truth_psnr"]), ("SSIM {}", s["truth_ssim"])) for s in scores])
    return Sheet(f"{scene.question.name}: error to the true image x°", names, [*rows, means]).figure()


@picture("effectiveness")
def effectiveness(scene: Scene) -> Figure:
    """A right answer, and another image with the right attributes."""
    names, variable = [COPY, TRUE, *scene.models, NEAREST], scene.dataset.graph[scene.question.variable]
    scene.measured(variable.name)
    classes = [v for v in scene.dataset.graph.image_parents if v.discrete]
    errors = {name: _error(scene, scene.image(name), scene.truth["image"]) for name in names}
    rows = []
    for r in scene.shown:
        cells = []
        for name in names:
            read = scene.seen(name).answer
            lines = [f"{variable.name} {written(variable, read.measured[variable.name][r], unit=True)}"]
            lines += [f"{v.name} {written(v, read.predicted[v.name][r])}" for v in classes if v.name in read.predicted]
            cells.append(Cell(scene.image(name)[r], [*lines, f"L1 to x° {errors[name][r]:.1f}"]))
        rows.append(Line(f"asked for\n{written(variable, scene.question.values[r], unit=True)}", cells))
    means = []
    for name in names:
        scores = scene.effectiveness(name)
        off = [("off by {}", s) for s in scores if s.metric == "effectiveness_measured" and s.variable == variable.name]
        right = [(f"{s.variable} right {{}}", s) for s in scores if s.metric == "effectiveness_accuracy"]
        means.append([*off, *right, ("L1 to x° {}", scene.truth_scores(name)["truth_l1"])])
    return Sheet(f"{scene.question.name}: what is read off x*", names, [*rows, _means(scene, means)]).figure()


@picture("minimality")
def minimality(scene: Scene) -> Figure:
    """Doing nothing beside a right answer: alike in latent divergence, not in where they change what."""
    names, crowd, shown = [COPY, TRUE, *scene.models, NEAREST], scene.crowd, scene.shown
    x, target = (inner(images[shown], scene.border) for images in (scene.observed["image"], scene.truth["image"]))
    features, alike, lines = scene.inputs.real.features[shown], scene.alike(), {}
    for name in names:
        images = inner(scene.image(name)[shown], scene.border)
        divergence = latent_divergence(features, scene.seen(name).answer.features[shown], crowd.features, *alike)
        each = zip(divergence, excess(images, x, target), misplaced_change(images, x, target), strict=True)
        lines[name] = [(f"CLD {d:.3f}", f"excess {e:.2f}", f"misplaced {m:.2f}") for d, e, m in each]
    rows = []
    for k, r in enumerate(shown):
        rows.append(Line("x*", [Cell(scene.image(name)[r]) for name in names]))
        changes = [scene.image(name)[r] - scene.observed["image"][r] for name in names]
        rows.append(Line("x* − x", [Cell(change, lines[name][k], 1.0) for name, change in zip(names, changes, strict=True)]))
    wanted = {"CLD {}": "minimality_cld", "excess {}": "minimality_excess", "misplaced {}": "minimality_misplaced"}
    scores = [scene.change_scores(name) for name in names]
    means = _means(scene, [[(text, of_metric[metric]) for text, metric in wanted.items()] for of_metric in scores])
    return Sheet(f"{scene.question.name}: minimality", names, [*rows, means]).figure()


@picture("realism")
def realism(scene: Scene) -> Figure:
    """Whose images they are does not matter to a Fréchet distance; whether they look real does."""
    crowd, rows = scene.crowd, []
    floor = realism_floor(scene.inputs.real, crowd, scene.seed)
    index = crowd.chosen.sort().values[:_CROWD]
    for name in (COPY, TRUE, *scene.models, BLUR, NEAREST):
        score = realism_score(scene.seen(name), scene.inputs.real, crowd, floor)
        label = f"{name}\nFréchet {in_figures(score)}\nL1 to x° {in_figures(scene.truth_scores(name)['truth_l1'])}"
        rows.append(Line(label, [Cell(image) for image in scene.image(name)[index]]))
    title = f"{scene.question.name}: Fréchet distance of {len(crowd.chosen)} images to as many real ones (floor, real to real: {floor:.1f})"
    return Sheet(title, [""] * len(index), rows, _SMALL).figure()


# ------------------------------------------------------------------------------------------------ axioms
@picture("cycles")
def cycles(scene: Scene) -> Figure:
    """Null interventions, and interventions and back, with the pixel residual and without; and a model that never changes anything."""
    times, steps, row = (1, 10), (2, 10), scene.cycled
    cases = [(name, scene.evaluators[name], t) for name in scene.models for t in (1.0, 0.0)] + [(COPY, scene.evaluators[COPY], None)]
    rows = []
    for name, evaluator, temperature in cases:
        x, forward, backward = evaluator.round_trip(scene.question, temperature)
        null = _copied if temperature is None else evaluator.null_steps(temperature)[1]
        again, there, back = [], [], []
        composition(x, keeping(null, again), times)
        reversibility(x, keeping(forward, there), keeping(backward, back), steps)
        cells = [Cell(x[row].cpu())]
        cells += [_off(scene, x, again[n - 1], "composition_l1") for n in times]
        cells += [Cell(there[0][row].cpu())]
        cells += [_off(scene, x, back[n // 2 - 1], "reversibility_l1") for n in steps]
        rows.append(Line(name if temperature is None else f"{name},\ntemperature {temperature:g}", cells))
    headings = ["x", *(f"regenerated\n{n}×" for n in times), scene.question.name, *(f"and back,\n{n} steps" for n in steps)]
    return Sheet(f"L1 to x of this image, and the mean of {len(x)}", headings, rows, _SMALL, apart=(1, 3)).figure()


def _copied(images: Tensor) -> Tensor:
    """What copying x makes of it under no intervention."""
    return images


def _off(scene: Scene, x: Tensor, images: Tensor, metric: str) -> Cell:
    """What has become of the image that goes through cycles, with its L1 to x and the mean of all."""
    errors = _error(scene, images, x)
    return Cell(images[scene.cycled].cpu(), (f"L1 {errors[scene.cycled]:.2f}", f"({in_figures(summarise(metric, errors))})"))


@picture("commutativity")
def either_order(scene: Scene) -> Figure:
    """Two interventions in either order."""
    second, row, answers = scene.second, scene.cycled, {}
    for name in (*scene.models, TRUE, COPY):
        answers[name] = [images.cpu() for images in scene.evaluators[name].in_either_order(scene.question, second)]
    reach = max(1 / 255, *(float((one[row] - other[row]).abs().max()) for one, other, _ in answers.values()))
    rows = []
    for name, (one, other, joint) in answers.items():
        distance = commutativity(*(inner(images, scene.border) for images in (one, other, joint)))
        lines = (f"L1 {distance.orders[row]:.2f}", f"({in_figures(summarise('commutativity_l1', distance.orders))})")
        joint_lines = [(f"L1 to joint {errors[row]:.2f}",) for errors in (distance.first, distance.second)]
        rows.append(Line(name, [Cell(scene.observed["image"][row]), Cell(one[row], joint_lines[0]), Cell(other[row], joint_lines[1]),
                                Cell(one[row] - other[row], lines, reach), Cell(joint[row])]))
    a, b = scene.question.name, second.name
    headings = ["x", f"{a},\nthen {b}", f"{b},\nthen {a}", f"difference,\n±{255 * reach:.0f} of 255", "both at once\n(joint)"]
    return Sheet(f"L1 between the orders, of this image and the mean of {len(one)}", headings, rows, _SMALL, apart=(1, 4)).figure()


# ------------------------------------------------------------------------------------------------ density and draws
@picture("free_energy")
def free_energy(scene: Scene) -> Figure:
    """The bound of each image against the error of its counterfactual."""
    figure = page(4.8, 3.1)
    axes = figure.subplots()
    tidy(axes)
    for name, color in zip(scene.models, (BLUE, ORANGE), strict=False):
        bits = bits_per_dimension(scene.evaluators[name].free_energy().cpu(), scene.observed["image"][0].numel())
        errors = _error(scene, scene.image(name), scene.truth["image"])
        ranks = torch.stack([values.argsort().argsort().double() for values in (bits, errors)])
        bound, wrong = summarise("free_energy", bits), summarise("truth_l1", errors)
        label = f"{name}: {in_figures(bound)} bits/dim, L1 {in_figures(wrong)}; rank correlation {float(torch.corrcoef(ranks)[0, 1]):.2f}"
        axes.scatter(bits, errors, s=5, color=color, alpha=0.35, linewidths=0)
        axes.plot(bound.value, wrong.value, "o", color=color, markersize=7, markeredgecolor="white", label=label, linewidth=0)
    axes.set_xlabel("free energy of x, bits/dim", fontsize=8)
    axes.set_ylabel(f"L1 to x° under {scene.question.name}, of 255", fontsize=8)
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper left", frameon=False, fontsize=7)
    figure.tight_layout(rect=(0, 0, 1, 1 - (0.1 + 0.15 * len(scene.models)) / 3.1))
    return figure


@picture("calibration")
def calibration(scene: Scene) -> Figure:
    """Intervals of draws about the truth: of latents alone, and of the model as it is calibrated."""
    variable = scene.dataset.graph[scene.question.variable]
    target, model = scene.measured(variable.name), scene.models[scene.first]
    models = {"latents alone": DSCM(model.attributes, model.image), **({"calibrated": model} if model.calibration else {})}
    figure = page(3.4 * len(models) + 0.3, 2.9)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, (words, each) in zip(panels, models.items(), strict=True):
        ((_, draws),) = Evaluator(each, scene.observed, scene.config, scene.seed).drawn([scene.question])
        scores = calibration_scores(scene.inputs.cases[0], draws, scene.observed["image"], scene.seen(TRUE).truth,
                                            scene.inputs.real, scene.border, scene.inputs.reader, scene.dataset)
        by_metric = {s.metric: s for s in scores if s.variable in ("", variable.name) and s.settings.get("level", LEVEL) == LEVEL}
        order = target[:draws.shape[1]].argsort()
        read = scene.inputs.reader.measure(draws.flatten(0, 1))[variable.name].view(len(draws), -1)
        low, high = ((end - target[:len(end)])[order] for end in Ensemble(read).interval(LEVEL, "weibull"))
        holds = (low <= 0) & (high >= 0)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.vlines(range(len(order)), low, high, colors=[BLUE if held else ORANGE for held in holds], linewidth=2.2)
        tidy(axes)
        share, ideal = by_metric["coverage_attribute"], by_metric["coverage_attribute"].floors["ideal"]
        changed, width, crps = (by_metric[metric] for metric in ("coverage_changed_pixel", "width_attribute", "crps_attribute"))
        axes.set_title(f"{words}: coverage {in_figures(share)} (ideal {ideal:.2f}),\nof changed pixels {in_figures(changed)};\n"
                       f"width {in_figures(width)}, CRPS {in_figures(crps)} {crps.unit}".rstrip(), fontsize=7, loc="left", color=INK)
        axes.set_xticks([])
        axes.set_xlabel(f"{len(order)} images, from low to high {variable.name} of x°", fontsize=7)
    panels[0].set_ylabel(f"{variable.name} of x* minus x°" + (f", {variable.unit}" if variable.unit else ""), fontsize=8)
    figure.text(0.99, 0.01, f"{LEVEL:.0%} intervals of {len(draws)} draws under {scene.question.name}; orange: the truth is outside",
                fontsize=6.5, color=PALE, ha="right", va="bottom")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure
