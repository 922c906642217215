"""What ``experiments.benchmark`` measures: one function a figure, with its reference and target beside it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch

from datasets.errors import UserError
from datasets.files.idx import load_mnist
from datasets.mnist.morpho import MorphoMNIST
from datasets.registry import open_dataset
from dscm.evaluation.evaluation import evaluate
from dscm.evaluation.questions import draw_questions
from experiments.benchmarks.base import Bench, measurement, process_rows, timed
from mechanisms.anticausal.model import Predictors
from mechanisms.training.noise import drawing


# ------------------------------------------------------------------------------------------------ error to the truth
def _truth(seconds: int, variable: str) -> Callable[[Bench], tuple[float, str]]:
    def measure(bench: Bench) -> tuple[float, str]:
        score, exact = bench.score(seconds, variable), bench.score(seconds, variable, "truth_l1_true_parents")
        return score.value, (f"± {score.error:.2g} over {score.count} images; with the true parents {exact.value:.3g}; identity "
                             f"{score.floors['identity']:.4g}; the {score.settings['border']}-pixel padding left out")

    return measure


for _seconds, _targets in ((60, (3.02, 1.68)), (600, (1.7, 1.0))):
    for _variable, _target, _reference in zip(("thickness", "intensity"), _targets, (3.02, 1.68), strict=True):
        measurement(f"truth_l1_do_{_variable}_{_seconds}s", "of 255", _reference, _target)(_truth(_seconds, _variable))


@measurement("identity_l1_do_thickness", "of 255", 12.07)
def identity_thickness(bench: Bench) -> float:
    """What copying x scores, for scale."""
    return bench.score(60, "thickness").floors["identity"]


@measurement("identity_l1_do_intensity", "of 255", 6.66)
def identity_intensity(bench: Bench) -> float:
    return bench.score(60, "intensity").floors["identity"]


@measurement("free_energy_30s", "nats/dim", 0.821, 0.821)
def free_energy(bench: Bench) -> tuple[float, str]:
    """−ELBO with z sampled after 30 s of training; the reference took 600 s."""
    model, test = bench.model(30).image, bench.dataset.split("test").batch(slice(0, min(bench.count, 512)))
    generator = torch.Generator().manual_seed(bench.seed)
    energies = model.free_energy(test["image"], test, drawing(generator, "cpu")) / test["image"][0].numel()
    error = float(energies.std() / len(energies) ** 0.5)
    return float(energies.mean()), f"± {error:.2g} over {len(energies)} held-out images; z sampled once"


# ------------------------------------------------------------------------------------------------ attributes
@measurement("attribute_fit_gap_nats", "nats", 0.0, 0.01)
def attribute_fit_gap(bench: Bench) -> tuple[float, str]:
    """The larger of the gaps of p(t) and p(i | t) to the true log-density, 60,000 rows fitted, 10,000 fresh ones scored."""
    scm, _ = bench.attribute_fit
    fresh = process_rows(10_000, bench.seed + 1)
    fitted = {name: float(value.detach().mean()) for name, value in scm.log_prob(fresh).items()}
    true = {name: float(value.mean()) for name, value in true_log_prob(fresh).items()}
    gaps = {name: true[name] - fitted[name] for name in true}
    note = "; ".join(f"{name}: true {true[name]:.4f}, fitted {fitted[name]:.4f}, gap {gaps[name]:.4f}" for name in gaps)
    return max(abs(gap) for gap in gaps.values()), note


@measurement("attribute_fit_seconds", "s", 60_000 / 3_004, 10.0)
def attribute_fit_seconds(bench: Bench) -> tuple[float, str]:
    return bench.attribute_fit[1], "60,000 rows, both mechanisms and the digit's; the reference is one pass over the rows at its speed"


@measurement("counterfactual_intensity_error", "of 191", 0.0, 1.0)
def counterfactual_intensity(bench: Bench) -> tuple[float, str]:
    """Mean error of the intensity under do(thickness ~ marginal) on 10,000 rows of known noise."""
    scm, _ = bench.attribute_fit
    rows = process_rows(10_000, bench.seed + 2)
    thickness = rows["thickness"][torch.randperm(10_000, generator=torch.Generator().manual_seed(bench.seed))]
    answer = scm.counterfactual(rows, {"thickness": thickness})["intensity"]
    share = torch.logit((rows["intensity"].double() - 64) / 191)
    truth = 64 + 191 * torch.sigmoid(share + 2 * (thickness - rows["thickness"]).double())
    errors = (answer - truth).abs()
    return float(errors.mean()), f"99th percentile {float(errors.quantile(0.99)):.3g}, largest {float(errors.max()):.3g}"


def true_log_prob(rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """log p(t) and log p(i | t) of :func:`process_rows` in closed form, nats."""
    thickness, share = rows["thickness"].double(), (rows["intensity"].double() - 64) / 191
    noise = (torch.logit(share) - 2 * (thickness - 2.5)) / 0.5
    jacobian = -torch.log(0.5 * share * (1 - share) * 191)
    return {"thickness": torch.distributions.Gamma(10.0, 5.0).log_prob(thickness - 0.5),
            "intensity": torch.distributions.Normal(0.0, 1.0).log_prob(noise) + jacobian}


# ------------------------------------------------------------------------------------------------ speed
@measurement("counterfactuals_per_second", "images/s", 107, 500, higher=True)
def counterfactuals_per_second(bench: Bench) -> tuple[float, str]:
    """Abduct and predict, batch 256: the best of five passes over 512 images."""
    model, observed = bench.model(30), bench.dataset.split("test").batch(slice(0, 512))
    best = min(timed(lambda: model.counterfactual(observed, {"thickness": 4.0}, batch_size=256)) for _ in range(5))
    return len(observed["image"]) / best, "attributes and image, float32, best of five"


@measurement("evaluate_seconds", "s", None, 60)
def evaluate_seconds(bench: Bench) -> tuple[float, str]:
    """Every metric of three interventions on 1,000 images, the true images rendered on the way."""
    model, count = bench.model(30), min(1000, len(bench.dataset.split("test")))
    questions, predictors = draw_questions(bench.dataset, "test", count, bench.seed), Predictors(bench.dataset.graph).eval()
    began = time.perf_counter()
    evaluation = evaluate(model, bench.dataset, questions, predictors)
    seconds = time.perf_counter() - began
    slowest = sorted(evaluation.about["seconds"].items(), key=lambda item: -item[1])[:4]
    return seconds, f"{count} images, {len(evaluation.scores)} figures; most of it: " + ", ".join(f"{n} {s:.1f} s" for n, s in slowest)


@measurement("render_ms_per_image", "ms", 84, 3)
def render(bench: Bench) -> tuple[float, str]:
    """One core, five renderings of each of 200 embedded digits, nothing cached."""
    dataset, digits = MorphoMNIST(workers=1), load_mnist(None, False)["train"][0][:200]
    rows = process_rows(1000, bench.seed)
    thickness, intensity = (rows[name].numpy().reshape(5, 200) for name in ("thickness", "intensity"))
    return 1000 * timed(lambda: dataset.render(digits, thickness, intensity)) / 1000, "one process, five renderings a digit"


def _official(exact: bool) -> Callable[[Bench], tuple[float | None, str]]:
    def measure(bench: Bench) -> tuple[float | None, str]:
        if bench.official is None or bench.mnist is None:
            return None, "needs --official and --mnist folders"
        source = open_dataset("morphomnist-official", {"data_dir": bench.official, "mnist": bench.mnist, "exact": exact})
        errors = []
        for name in ("train", "valid", "test"):
            split = source.split(name)
            observed = {n: split.attributes[n] for n in ("thickness", "intensity")}
            truth = source.true_counterfactual(name, torch.arange(len(split)), observed)["image"]
            inner = slice(source.border, -source.border)
            errors.append((truth * 255 - split.images.float()).abs()[:, :, inner, inner].mean((1, 2, 3)))
        return float(torch.cat(errors).mean()), f"over {sum(map(len, errors))} official images"

    return measure


measurement("render_error_fast", "of 255", 0.4, 1.25)(_official(exact=False))
measurement("render_error_exact", "of 255", 0.4, 0.5)(_official(exact=True))


@measurement("import_seconds", "s", None, 4)
def import_seconds(bench: Bench) -> tuple[float, str]:
    names = "from dscm import DSCM; from mechanisms import HVAE; from pgm import AttributeSCM"
    return _process("-c", names), "DSCM, HVAE and AttributeSCM, median of 3"


@measurement("help_seconds", "s", None, 1)
def help_seconds(bench: Bench) -> tuple[float, str]:
    commands = ("experiments.quickstart", "pgm.train", "mechanisms.train", "mechanisms.predictors", "dscm.counterfactual",
                "dscm.calibrate", "dscm.evaluate", "dscm.export", "dscm.finetune", "experiments.benchmark", "experiments.compare",
                "experiments.explain", "experiments.robustness", "experiments.selective", "experiments.train")
    times = {command: _process("-m", command, "--help") for command in commands}
    return max(times.values()), "the slowest of " + ", ".join(f"{c} {t:.2f}" for c, t in times.items())


def _process(*arguments: str) -> float:
    def once() -> None:
        result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        if result.returncode:
            raise UserError(f"python {' '.join(arguments)} failed: {result.stderr.strip()[-300:]}")

    return sorted(timed(once) for _ in range(3))[1]
