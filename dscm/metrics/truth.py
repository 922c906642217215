"""Error to the true counterfactual, where a data set knows its own process: L1, PSNR and SSIM of images, error of attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from datasets.base import CausalDataset
from datasets.schema import SchemaError, Variable
from dscm.metrics.score import Metric, Score, named

if TYPE_CHECKING:
    from dscm.evaluation.answers import Case
    from dscm.evaluation.inputs import MetricInputs

RANK = 10
SMALLEST = 11  # pixels on a side that the structural similarity's window takes

ONE_LEVEL = 1 / 255 + 1e-6  # of 256 grey levels, on [0, 1]; rounding in float32 must not decide
ROUNDING = 1 / 255**2 / 12  # mean squared error that rounding to grey levels makes
_RADIUS = 5  # of SSIM's window, in pixels
_C1, _C2 = 0.01**2, 0.03**2  # keep SSIM finite on black
_DILUTED = "a padded border is right for every model and dilutes the error; leave it out"

METRICS = named(
    Metric("truth_l1", "mean absolute difference to the true counterfactual image, of 255", "grey levels", "lower", _DILUTED,
           label="error to the true image, L1", short="L1 to the true image"),
    Metric("truth_l1_true_parents", "truth_l1 with the image's true counterfactual parents instead of the model's own", "grey levels",
           "lower", "leaves out the errors of the attributes' mechanisms: no figure of the whole model", label="… with the true parents"),
    Metric("truth_psnr", "peak signal to the root of the mean squared error, pooled over all images", "dB", "higher",
           "a few bad images decide; a blurred image does well", label="… PSNR"),
    Metric("truth_psnr_image", "the same for each image, then averaged", "dB", "higher",
           "a logarithm: near-perfect images outweigh bad ones; capped at 58.9 dB, the rounding of the truth to grey levels"),
    Metric("truth_ssim", "structural similarity to the true counterfactual image, 1 where equal", "", "higher",
           "black background is similar to itself: copying x scores high", label="… SSIM", short="SSIM"),
    Metric("truth_attribute", "error of the model's counterfactual attribute against the true one (share of wrong classes if discrete)",
           "", "lower", "0 for the attribute that is set: look at its descendants",
           label="{variable} by the model", short="{variable} by the model"),
)


def image_error(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each image on the 0–255 scale, ``(B,)``, of images ``(B, C, H, W)`` in [0, 1].

    >>> image_error(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
    tensor([255., 255.])
    """
    return (images - target).abs().flatten(1).mean(1) * 255


def attribute_error(variable: Variable, values: Tensor, target: Tensor) -> Tensor:
    """``|a − a*|`` in physical units, or 1 where the class is wrong and 0 where it is right, ``(B,)``."""
    return (values != target).float() if variable.discrete else (values - target).abs()


def inner(images: Tensor, border: int) -> Tensor:
    """``images`` without the ``border`` outermost pixels on each side; ``2·border`` is less than height and width."""
    return images[..., border:images.shape[-2] - border, border:images.shape[-1] - border]


def changed_pixels(observed: Tensor, truth: Tensor) -> Tensor:
    """``(B, C, H, W)`` booleans: the truth differs from the observed image by more than one grey level."""
    return (truth - observed).abs() > ONE_LEVEL


def psnr(images: Tensor, target: Tensor) -> float:
    """``−10·log10(mse)`` in dB of the mean squared error over all images in [0, 1]; infinite if that is 0."""
    return float(peak_signal_noise_ratio(images, target, data_range=1.0))


def psnr_per_image(images: Tensor, target: Tensor) -> Tensor:
    """PSNR of each image in dB, ``(B,)``, at most 58.9.

    An exact image would make the mean infinite, whatever the others are. No error below that of rounding to 256 grey
    levels (a mean square of 1/12 of a squared level) can be told from none, since the truth is rounded itself.
    """
    return -10 * torch.log10((images - target).square().flatten(1).mean(1).clamp(min=ROUNDING))


def ssim(images: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image in [0, 1], ``(B,)`` (Wang et al., 2004, eq. 13; Gaussian window of 1.5 pixels, 11 wide).

    The mean over all pixels of ``(2μν + c₁)(2·cov + c₂) / ((μ² + ν² + c₁)(var + var' + c₂))``, edges mirrored: torchmetrics'
    figure. The window is separable, so it is two small matrix products here, about ninety times faster than a
    convolution in double precision. That precision is needed: variances of uniform patches cancel in single precision,
    where SSIM(x, x) can come out as 0.9999.

    Raises:
        SchemaError: for images of fewer than 6 pixels on a side, which a mirrored window does not fit.
    """
    if min(images.shape[-2:]) <= _RADIUS:
        raise SchemaError(f"SSIM needs images of at least {_RADIUS + 1} pixels on each side, got {tuple(images.shape[-2:])}")
    x, y = images.double(), target.double()
    rows, columns = (_window(size).to(x.device) for size in x.shape[-2:])
    mean_x, mean_y, square_x, square_y, product = (rows @ z @ columns.T for z in (x, y, x * x, y * y, x * y))
    variances = (square_x - mean_x**2).clamp(min=0) + (square_y - mean_y**2).clamp(min=0)
    similarity = (2 * mean_x * mean_y + _C1) * (2 * (product - mean_x * mean_y) + _C2)
    return (similarity / ((mean_x**2 + mean_y**2 + _C1) * (variances + _C2))).flatten(1).mean(1)


def _window(size: int) -> Tensor:
    """``(size, size)``: a Gaussian window along one axis, mirrored at the edges without repeating them."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1)
    weights = torch.exp(-0.5 * (offsets.double() / 1.5) ** 2)
    source = (torch.arange(size).unsqueeze(1) + offsets).abs()
    source = torch.where(source < size, source, 2 * (size - 1) - source)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


# ------------------------------------------------------------------------------------------------ scores
def scores(inputs: MetricInputs) -> Iterator[Score]:
    """Of every answer whose truth is known."""
    for case in inputs.cases:
        if case.truth is None:
            inputs.missing[f"truth_*, minimality_excess, minimality_misplaced, coverage_*, width_*, crps_* under {case.name}"] = (
                f"{inputs.dataset.title} knows no true image under {case.name}; a data set that does defines true_counterfactual and "
                "names the variable in true_images_under")
            continue
        yield from truth_scores(case, inputs.observed, inputs.border, inputs.dataset)
    if min(inputs.observed["image"].shape[-2:]) - 2 * inputs.border < SMALLEST:
        inputs.missing["truth_ssim"] = f"its window takes images of at least {SMALLEST} pixels on a side"


def truth_scores(case: Case, observed: Mapping[str, Tensor], border: int, dataset: CausalDataset) -> Iterator[Score]:
    """Images and attributes against the true ones, beside those of copying the observation."""
    about = {"intervention": case.name}
    images = {name: inner(x, border) for name, x in (("answer", case.answer["image"]), ("exact", case.with_true_parents),
                                                     ("observed", observed["image"]), ("truth", case.truth["image"]))}
    truth, on_images = images["truth"], {**about, "settings": {"border": border}}
    copying = image_error(images["observed"], truth)
    for metric, name in (("truth_l1", "answer"), ("truth_l1_true_parents", "exact")):
        yield METRICS[metric].score(image_error(images[name], truth), floors={"identity": copying, "truth": 0.0}, **on_images)
    floors = {"identity": psnr(images["observed"], truth), "truth": float("inf")}
    yield METRICS["truth_psnr"].score(psnr(images["answer"], truth), count=len(truth), floors=floors, **on_images)
    for metric, measure in (("truth_psnr_image", psnr_per_image), ("truth_ssim", ssim)):
        if metric == "truth_ssim" and min(truth.shape[-2:]) < SMALLEST:
            continue
        floors = {"identity": measure(images["observed"], truth), "truth": measure(truth, truth)}
        yield METRICS[metric].score( measure(images["answer"], truth), floors=floors, **on_images)
    for name in sorted(dataset.schema.descendants([case.question.variable]) - {dataset.schema.image.name}):
        variable, target = dataset.schema[name], case.truth[name]
        floors = {"identity": attribute_error(variable, observed[name], target), "truth": 0.0}
        yield METRICS["truth_attribute"].score(attribute_error(variable, case.answer[name], target), variable=name,
                        unit=unit_of(variable), floors=floors, **about)


def unit_of(variable: Variable) -> str:
    """Of an error of this attribute: a share for classes."""
    return "" if variable.discrete else variable.unit
