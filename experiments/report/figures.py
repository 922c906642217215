"""What the quickstart asks and shows of a model: interventions, counterfactuals, attributes, samples, training curves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from datasets.base import CausalDataset
from datasets.errors import UserError
from datasets.schema import Variable
from dscm.evaluation.evaluation import Evaluation
from dscm.evaluation.figures import figures_of
from dscm.figures.attributes import attribute_figure
from dscm.figures.grid import counterfactual_grid
from dscm.figures.run import answer
from dscm.figures.style import save_figure
from dscm.figures.training import training_curves
from dscm.model import DSCM
from mechanisms.runs.files import MetricsLog, replacing
from mechanisms.training.noise import seeded
from mechanisms.training.state import METRICS
from pgm.interventions import Do, resolve_do

_TILES = 24  # observed and sampled images shown
_MOST_COLUMNS = 8  # of the grid's interventions, unless they are asked for


def draw_figures(dscm: DSCM, dataset: CausalDataset, interventions: Sequence[tuple[str, Do]], run: Path, trained: Sequence[str],
                 count: int, seed: int) -> dict[str, Path]:
    """``figures/*.png`` of the run: ``{what it shows: path}``; ``trained`` are the folders whose training curves are drawn."""
    folder, graph, test = run / "figures", dataset.graph, dataset.split("test")
    index = torch.arange(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the grid marks what lies beyond the training data
        columns = answer(dscm, dataset, "test", index, interventions, seed=seed)
    paths = {"counterfactuals": save_figure(counterfactual_grid(test.batch(index), columns, graph), folder / "counterfactuals.png")}

    # an intervention that has effects among the attributes shows more than one that has none
    label, do = max(interventions, key=lambda each: len(graph.descendants(each[1])))
    rows = min(len(dataset.split("train")), 4000)
    training = {name: values[:rows] for name, values in dataset.split("train").attributes.items()}
    action = resolve_do(graph, do, training, rows)[0]
    sampled, intervened = (dscm.attributes.sample(rows, given, seeded(seed)) for given in (None, action))
    paths["attributes"] = save_figure(attribute_figure(training, sampled, graph, (label, intervened)), folder / "attributes.png")
    paths["observed"] = save_tiles(test.batch(slice(0, _TILES))["image"], folder / "observed.png")
    for name, temperature in (("sampled", 1.0), ("sampled_mean", 0.0)):
        images = dscm.sample(_TILES, generator=seeded(seed), temperature=temperature)["image"]
        paths[name] = save_tiles(images, folder / f"{name}.png")
    for name in trained:
        curves = training_curves(MetricsLog.read(run / name / METRICS), f"{name}: loss and its terms, in nats")
        paths[f"training_{name}"] = save_figure(curves, folder / f"training_{name}.png")
    return paths


def metric_figures(evaluation: Evaluation, run: Path) -> dict[str, Path]:
    """``figures/metrics_*.png`` of the run: ``{what it shows: path}``."""
    return {f"metrics_{name}": save_figure(figure, run / "figures" / f"metrics_{name}.png")
            for name, figure in figures_of(evaluation.scores).items()}


def save_tiles(images: torch.Tensor, path: Path) -> Path:
    """Images ``(B, C, H, W)`` in [0, 1] as one PNG, six in a row, enlarged without smoothing."""
    shown = images.cpu() if images.shape[1] == 3 else images.cpu().mean(1, keepdim=True)
    tiles = make_grid(shown, nrow=6, padding=1, pad_value=1.0)
    scale = max(1, 96 // images.shape[-1])
    with replacing(path) as temporary:
        save_image(tiles.repeat_interleave(scale, 1).repeat_interleave(scale, 2), temporary, format="png")
    return path


def default_do(dataset: CausalDataset) -> tuple[str, ...]:
    """A low and a high value of each attribute that can change the image; of many attributes, one value each.

    Raises:
        UserError: if no attribute can.
    """
    graph, training = dataset.graph, dataset.split("train").attributes
    names = [v.name for v in graph.attributes if graph.image.name in graph.descendants([v.name])][:_MOST_COLUMNS]
    if not names:
        raise UserError(f"nothing to ask of {dataset.title}: in its graph, no attribute causes the image")
    shares = (0.1, 0.9) if 2 * len(names) <= _MOST_COLUMNS else (0.9,)
    texts = []
    for name in names:
        variable, values = graph[name], training[name]
        if variable.discrete:
            seen = [k for k, count in enumerate(variable.statistics.counts) if count]
            words = [str(seen[round(share * (len(seen) - 1))]) for share in shares]
        else:
            words = [_rounded(variable, float(values.double().quantile(share))) for share in shares]
        texts.append(f"{name}={','.join(dict.fromkeys(words))}")
    return tuple(texts)


def _rounded(variable: Variable, value: float) -> str:
    """Rounded to about a tenth of the spread, but not out of what was seen in training."""
    seen, digits = variable.statistics, -math.floor(math.log10(variable.statistics.std))
    rounded = next((r for r in (round(value, digits), round(value, digits + 1)) if seen.minimum <= r <= seen.maximum), value)
    return f"{rounded:.10g}"
