"""Algorithms: every one on every toy data, closed forms against autograd, loops and numpy, and two processes against one."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import UserError
from datasets.task import Sizes
from experiments.algorithms.base import Algorithm, cross_entropy
from experiments.algorithms.coral import moments
from experiments.algorithms.counterfactual import jensen_shannon
from experiments.algorithms.fishr import by_outputs, gradient_variances
from experiments.algorithms.gridmask import GridMaskSettings, grid
from experiments.algorithms.groups import mean_of_present, means_by
from experiments.algorithms.irm import slope
from experiments.algorithms.mixup import beta, partner, uniform
from experiments.algorithms.registry import ALGORITHMS, algorithm
from experiments.algorithms.reweighting import balanced
from experiments.networks.registry import build_network
from mechanisms.runs.files import RunError
from mechanisms.training.noise import Noise
from tests.errors import naming

ROOT = Path(__file__).resolve().parents[3]
ROWS = 96
NEEDS = {"environments", "groups", "counterfactuals", "relabelled", "masks", "camera"}
TOYS = {"two classes, vectors": ("mlp", (1, 4, 4), 2), "three classes, RGB": ("smallcnn", (3, 16, 16), 3)}
every = pytest.mark.parametrize("name", ALGORITHMS)
on_every_toy = pytest.mark.parametrize("toy", TOYS)


def toy_batch(shape: tuple[int, int, int], classes: int, rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    """The label is brightness of the upper half, the mask; the spurious class that of the last row. They are alike on 80 % or 95 %."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (rows,), generator=generator)
    environment = torch.arange(rows) % 2
    follow = torch.rand(rows, generator=generator) < torch.where(environment == 0, 0.8, 0.95)
    spurious = torch.where(follow, label, torch.randint(classes, (rows,), generator=generator))
    images = 0.2 * torch.rand(rows, *shape, generator=generator)
    images[:, :, : shape[1] // 2] += 0.6 * (label / (classes - 1))[:, None, None, None]
    others = images[:, None].repeat(1, 2, 1, 1, 1)
    relabelled = others.clone()
    relabelled[..., : shape[1] // 2, :] += 0.6 * (((label + 1) % classes - label) / (classes - 1)).view(-1, 1, 1, 1, 1)
    images[:, :, -1] += 0.2 * (spurious / (classes - 1))[:, None, None]
    masks = torch.zeros(rows, *shape[1:], dtype=torch.bool)
    masks[:, : shape[1] // 2] = torch.arange(rows)[:, None, None] % 6 > 0  # of some even rows, nothing is known
    return {"image": images.clamp(0, 1), "label": label, "environment": environment, "group": label * classes + spurious,
            "row": torch.arange(rows), "counterfactual": (others.clamp(0, 1) * 255).to(torch.uint8), "mask": masks,
            "relabelled": (relabelled.clamp(0, 1) * 255).to(torch.uint8)}


def built(name: str, toy: str, settings: object = None, l2: float = 0.0) -> Algorithm:
    network, shape, classes = TOYS[toy]
    torch.manual_seed(0)
    return algorithm(name)(build_network(network, shape, classes, 16), Sizes(classes, 2, classes**2), settings, l2)


# ---------------------------------------------------------------------------------------------------- laws of all
@every
@on_every_toy
def test_every_algorithm_learns_every_toy(name, toy):
    model, batch = built(name, toy), toy_batch(*TOYS[toy][1:])
    rate = 0.01 if all(p.requires_grad for p in model.parameters()) else 0.1  # of a head alone
    optimizer, noise = torch.optim.Adam(model.parameters(), rate), Noise(0)
    before = cross_entropy(model.train().network(batch["image"]), batch["label"]).mean()
    logs = [model.update(batch, optimizer, step / 20, noise) for step in range(20)]
    assert all(math.isfinite(value) for log in logs for value in log.values())
    after = cross_entropy(model.train().network(batch["image"]), batch["label"]).mean()
    assert after < (0.9 if rate < 0.1 else 0.97) * before
    assert model.predict(batch["image"]).shape == (ROWS, TOYS[toy][2])


@every
@on_every_toy
def test_gradients_reach_every_parameter_that_is_trained(name, toy):
    model, batch = built(name, toy, l2=0.01), toy_batch(*TOYS[toy][1:])
    model.train()(batch, Noise(0), 1.0)["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters() if p.requires_grad)


@every
def test_saved_and_loaded_is_the_same_bit_for_bit(name):
    toy = "three classes, RGB"
    model, batch = built(name, toy), toy_batch(*TOYS[toy][1:])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.update(batch, optimizer, 0.5, Noise(0))
    again = built(name, toy)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.predict(batch["image"]), model.predict(batch["image"]))
    first, second = (m.train()(batch, Noise(1), 0.7)["loss"] for m in (model, again))
    assert torch.equal(first, second) and first.shape == (ROWS,)


@every
def test_prediction_leaves_the_mode_and_the_statistics(name):
    model, batch = built(name, "three classes, RGB").train(), toy_batch(*TOYS["three classes, RGB"][1:])
    modes, state = [m.training for m in model.modules()], {n: v.clone() for n, v in model.state_dict().items()}
    logits = model.predict(batch["image"])
    assert [m.training for m in model.modules()] == modes and all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    torch.testing.assert_close(torch.cat([model.predict(part) for part in batch["image"].split(7)]), logits)  # no batch statistics


@every
def test_an_algorithm_says_what_it_is(name):
    kind = algorithm(name)
    assert kind.title and kind.assumes and kind.__doc__ and kind.needs <= NEEDS


def test_unknown_algorithms_are_listed():
    with pytest.raises(RunError, match=naming("'erm2' erm irm vrex")):
        algorithm("erm2")


def test_words_of_a_name_are_joined_by_hyphens_and_underscores_are_accepted():
    assert not any("_" in name for name in ALGORITHMS)
    assert all(algorithm(name.replace("-", "_")) is kind for name, kind in ALGORITHMS.items()) and algorithm("cf_f").name == "cf-f"


@pytest.mark.parametrize("name, settings, message", [
    ("irm", {"penalty": -1.0}, "penalty=-1.0"), ("vrex", {"anneal": 1.5}, "anneal=1.5"),
    ("fishr", {"memory": 1.0}, "memory=1.0"),
    ("groupdro", {"eta": float("nan")}, "eta=nan"), ("mixup", {"alpha": 0.0}, "alpha=0.0"),
    ("lisa", {"within_label": 2.0}, "within_label=2.0"), ("jtt", {"share": 0.0}, "share=0.0"), ("jtt", {"weight": 0.5}, "weight=0.5"),
    ("dfr", {"samplings": 0}, "samplings=0"), ("dfr", {"strength": -1.0}, "strength=-1.0"),
    ("cf-augmentation", {"share": 1.1}, "share=1.1"),
    ("cf-consistency", {"weight": -1.0}, "weight=-1.0"), ("label-smoothing", {"smoothing": 1.0}, "smoothing=1.0"),
    ("gridmask", {"shortest": 2.0}, "shortest=2.0"), ("gridmask", {"ratio": -0.1}, "ratio=-0.1"),
])
def test_settings_that_make_no_sense(name, settings, message):
    kind = algorithm(name)
    with pytest.raises(UserError, match=naming(message)):
        kind.check(kind.settings(**settings))


# ---------------------------------------------------------------------------------------------------- penalties
TOY = "three classes, RGB"


def parts(name: str, progress: float = 1.0, toy: str = TOY, **settings: float) -> tuple[Algorithm, dict[str, Tensor], dict[str, Tensor]]:
    model = built(name, toy, algorithm(name).settings(**settings)).double()
    batch = {n: v.double() if n == "image" else v for n, v in toy_batch(*TOYS[toy][1:]).items()}
    model.network.head.float()  # heads are single precision
    return model, batch, model.objective(batch, progress, Noise(0))


def by_environment(batch: dict[str, Tensor]) -> list[Tensor]:
    return [(batch["environment"] == e).nonzero()[:, 0] for e in (0, 1)]


@on_every_toy
@pytest.mark.parametrize("unbiased", [False, True])
def test_irm_is_the_derivative_by_a_dummy_scale(toy, unbiased):
    model, batch, terms = parts("irm", toy=toy, unbiased=unbiased)
    logits, found = model.network(batch["image"]), []
    for rows in by_environment(batch):
        slopes = []
        for half in ([rows[0::2], rows[1::2]] if unbiased else [rows]):
            scale = torch.ones((), requires_grad=True)
            slopes.append(torch.autograd.grad(F.cross_entropy(scale * logits[half], batch["label"][half]), scale, create_graph=True)[0])
        found.append(slopes[0] * slopes[-1])
    expected = torch.stack(found).mean()
    torch.testing.assert_close(terms["penalty"], expected, rtol=1e-4, atol=1e-8)
    ours, theirs = (torch.autograd.grad(p, model.network.head.weight, retain_graph=True)[0] for p in (terms["penalty"], expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)


def test_slope_is_the_derivative_of_each_row():
    logits, labels, scale = torch.randn(7, 4), torch.randint(4, (7,)), torch.ones(7, requires_grad=True)
    expected = torch.autograd.grad(cross_entropy(scale[:, None] * logits, labels).sum(), scale)[0]
    torch.testing.assert_close(slope(logits, labels), expected)


def test_vrex_is_the_variance_of_risks():
    model, batch, terms = parts("vrex", unbiased=False)
    risks = np.array([F.cross_entropy(model.network(batch["image"])[rows], batch["label"][rows]).item() for rows in by_environment(batch)])
    assert terms["penalty"].item() == pytest.approx(risks.var(), rel=1e-3, abs=1e-9) and terms["risk"].item() == pytest.approx(risks.mean())


def test_vrex_on_mini_batches_multiplies_deviations_of_two_halves():
    model, batch, terms = parts("vrex")
    losses = cross_entropy(model.network(batch["image"]), batch["label"])
    first, second = (np.array([losses[rows[half::2]].mean().item() for rows in by_environment(batch)]) for half in (0, 1))
    expected = ((first - first.mean()) * (second - second.mean())).mean()
    assert terms["penalty"].item() == pytest.approx(expected, rel=1e-3, abs=1e-9) and expected != pytest.approx(terms["risk"].item())


@on_every_toy
def test_fishr_is_the_variance_of_single_gradients(toy):
    model, batch, summed = parts("fishr", toy=toy, memory=0.0, summed=True)
    terms = parts("fishr", toy=toy, memory=0.0)[2]
    head, features, variances = model.network.head, model.network.features(batch["image"]).float().detach(), []
    for rows in by_environment(batch):
        gradients = []
        for i in rows.tolist():
            loss = F.cross_entropy(model.network.logits(features[i : i + 1]), batch["label"][i : i + 1])
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [head.weight, head.bias])]))
        variances.append(torch.stack(gradients).var(0, unbiased=False))
    centre = torch.stack(variances).mean(0)
    expected = torch.stack([(v - centre).square().sum() for v in variances]).mean()
    torch.testing.assert_close(summed["penalty"], expected, rtol=1e-3, atol=1e-9)
    mean = torch.stack([(v - centre).square().mean() for v in variances]).mean()
    torch.testing.assert_close(terms["penalty"], mean, rtol=1e-3, atol=1e-9)


def test_fishr_remembers_variances_over_updates():
    """Two batches, m = .9: running means a₁ = .1·v₁, a₂ = .9·a₁ + .1·v₂, compared as a / .1; the gradient is that of v₂ alone."""
    toy, other = TOYS[TOY][1:], toy_batch(*TOYS[TOY][1:], seed=1)
    model, batch, first = parts("fishr", memory=0.9)

    def variances(rows: dict[str, Tensor]) -> Tensor:
        features = model.network.features(rows["image"]).float()
        gradients = by_outputs(model.network.logits(features), rows["label"], model.network.head.out_features)
        return gradient_variances(features, gradients, rows["environment"], torch.tensor([ROWS / 2, ROWS / 2]))

    def penalty(of: Tensor) -> Tensor:
        return (of - of.mean(0)).square().mean()

    other = {n: v.double() if n == "image" else v for n, v in other.items()}
    one, two = variances(batch).detach(), variances(other)
    torch.testing.assert_close(first["penalty"], penalty(one), rtol=1e-4, atol=1e-9, check_dtype=False)
    found, expected = model.objective(other, 1.0, Noise(0))["penalty"], penalty(0.9 * one + two)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9, check_dtype=False)
    torch.testing.assert_close(model.variances.float(), (0.09 * one + 0.1 * two).detach(), rtol=1e-4, atol=1e-7)
    ours, theirs = (torch.autograd.grad(p, model.network.head.weight, retain_graph=True)[0] for p in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-7)
    one_sided = {n: v[batch["environment"] == 0] for n, v in toy_batch(*toy, seed=2).items()}
    kept = model.variances[1].clone()
    model.objective({n: v.double() if n == "image" else v for n, v in one_sided.items()}, 1.0, Noise(0))
    assert torch.equal(model.variances[1], kept)  # of an environment without rows


def test_coral_compares_means_and_covariances():
    model, batch, terms = parts("coral")
    features = model.network.features(batch["image"]).detach().float().numpy()
    first, second = (features[rows.numpy()] for rows in by_environment(batch))
    means = np.square(first.mean(0) - second.mean(0)).mean()
    covariances = np.square(np.cov(first.T) - np.cov(second.T)).mean()
    assert terms["penalty"].item() == pytest.approx(means + covariances, rel=1e-3)
    assert moments(torch.from_numpy(features), batch["environment"], 2)[1][1].numpy() == pytest.approx(np.cov(second.T), abs=1e-5)


@pytest.mark.parametrize("name", ["irm", "vrex", "fishr", "coral"])
def test_penalties_anneal_and_rescale(name):
    given = {"penalty": 50.0, "anneal": 0.3, **({"memory": 0.0} if name == "fishr" else {})}
    _, _, early = parts(name, progress=0.29, **given)
    model, batch, late = parts(name, progress=0.3, **given)
    _, _, raw = parts(name, progress=0.3, **given, rescale=False)
    torch.testing.assert_close(early["loss"], early["risk"] + early["penalty"], check_dtype=False)
    torch.testing.assert_close(raw["loss"], raw["risk"] + 50 * raw["penalty"], check_dtype=False)
    torch.testing.assert_close(late["loss"], raw["loss"] / 50, check_dtype=False)
    model.l2 = 0.1
    weights = sum(p.square().sum() for p in model.network.parameters())
    with_l2 = model.objective(batch, 0.3, Noise(0))["loss"]
    torch.testing.assert_close(with_l2, late["loss"] + 0.1 * weights / 50, check_dtype=False, rtol=1e-5, atol=1e-6)


def test_the_optimiser_restarts_where_the_penalty_sets_in():
    model = built("irm", TOY, algorithm("irm").settings(anneal=190 / 501))
    assert model.restarts() == (190 / 501,) and model.weight(190 / 501) == 100 and model.weight(189 / 501) == 1
    assert built("irm", TOY, algorithm("irm").settings(reset=False)).restarts() == () == built("erm", TOY).restarts()


@pytest.mark.parametrize("name, weight", [("irm", 100), ("vrex", 10), ("fishr", 1000)])
def test_penalties_are_by_default_for_mini_batches(name, weight):
    settings = algorithm(name).settings()
    assert settings.penalty == weight and settings.reset
    assert (settings.memory, settings.summed) == (0.95, False) if name == "fishr" else settings.unbiased


POPULATION = torch.tensor([[1.5, -0.5, 0.2], [-1.0, 0.4, 0.1], [0.3, 0.9, -2.0]])  # logits of the only three rows there are


@pytest.mark.parametrize("unbiased", [True, False])
def test_irm_is_the_populations_penalty_on_average_over_all_batches(unbiased):
    """All 3⁴ batches of four rows drawn from three, and the square of the mean slope over the three."""
    model, labels = built("irm", TOY, algorithm("irm").settings(unbiased=unbiased)), torch.tensor([0, 2, 1])
    model.sizes = Sizes(3, 1, 9)
    found = []
    for drawn in itertools.product(range(3), repeat=4):
        batch = {"label": labels[list(drawn)], "environment": torch.zeros(4, dtype=torch.long)}
        found.append(model.penalty(None, POPULATION[list(drawn)], batch, None, torch.tensor([4.0])).item())
    slopes = slope(POPULATION, labels)
    excess = 0.0 if unbiased else slopes.var(unbiased=False).item() / 4
    assert slopes.var(unbiased=False) > 0.03
    assert np.mean(found) == pytest.approx(slopes.mean().item() ** 2 + excess, rel=1e-4)


def test_irm_is_the_u_statistic_on_average_over_all_splits_of_a_batch():
    """Of four rows into two halves of two: mean over the orders of the rows = Σ_{i≠j} d_i·d_j / (4·3)."""
    model, logits, labels = built("irm", TOY), torch.cat([POPULATION, torch.tensor([[2.0, 0.0, 1.0]])]), torch.tensor([0, 2, 1, 2])
    model.sizes = Sizes(3, 1, 9)
    environment, counts = torch.zeros(4, dtype=torch.long), torch.tensor([4.0])
    found = [model.penalty(None, logits[list(order)], {"label": labels[list(order)], "environment": environment}, None, counts).item()
             for order in itertools.permutations(range(4))]
    slopes = slope(logits, labels)
    assert np.mean(found) == pytest.approx(((slopes.sum() ** 2 - slopes.square().sum()) / 12).item(), rel=1e-4)


@pytest.mark.parametrize("unbiased", [True, False])
def test_vrex_is_the_populations_penalty_on_average_over_all_batches(unbiased):
    """All batches of two rows of each of two environments of three: the variance of their risks, ((R₀ − R₁)/2)²."""
    settings = algorithm("vrex").settings(unbiased=unbiased)
    model, labels = built("vrex", TOY, settings), torch.tensor([[0, 2, 1], [1, 1, 2]])
    found, environment = [], torch.tensor([0, 1, 0, 1])
    for drawn in itertools.product(range(3), repeat=4):
        label, rows = labels[environment, list(drawn)], torch.tensor(drawn)
        batch = {"label": label, "environment": environment}
        risks, counts = means_by(cross_entropy(POPULATION[rows], label), environment, 2)
        found.append(model.penalty(None, POPULATION[rows], batch, risks, counts).item())
    losses = torch.stack([cross_entropy(POPULATION, row) for row in labels])
    excess = 0.0 if unbiased else losses.var(1, unbiased=False).sum().item() / 2 / 4
    expected = ((losses[0].mean() - losses[1].mean()) / 2).item() ** 2
    assert expected > 0.01 and np.mean(found) == pytest.approx(expected + excess, rel=1e-4)


def test_the_unbiased_penalty_is_unbiased():
    """Of slopes d with mean m and variance v, over batches of 8 rows: the square's mean is m² + v/8, the product's m²."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(16_000, 8, 3, generator=generator), torch.randint(3, (16_000, 8), generator=generator)
    slopes, found = slope(logits.flatten(0, 1), labels.flatten()), {}
    for unbiased in (False, True):
        model = built("irm", TOY, algorithm("irm").settings(unbiased=unbiased))
        model.sizes = Sizes(3, 2)
        batches = ({"label": row, "environment": torch.zeros(8, dtype=torch.long)} for row in labels[:4000])
        penalties = [model.penalty(torch.zeros(8, 1), rows, batch, torch.zeros(2), torch.tensor([8, 0]))
                     for rows, batch in zip(logits[:4000], batches, strict=True)]
        found[unbiased] = torch.stack(penalties)
    expected, spread = slopes.mean().square().item(), slopes.var().item() / 8
    errors = {key: (values.std() / math.sqrt(len(values))).item() for key, values in found.items()}
    assert abs(found[True].mean().item() - expected) < 4 * errors[True] and spread > 10 * errors[True]
    assert abs(found[False].mean().item() - expected - spread) < 4 * errors[False]


@pytest.mark.parametrize("name", ["irm", "vrex", "fishr", "coral"])
def test_environments_without_rows_are_left_out(name):
    model, batch = built(name, TOY), toy_batch(*TOYS[TOY][1:])
    wider = algorithm(name)(model.network, Sizes(3, 5, 9))
    model.network.eval()
    first, second = (m.objective(batch, 1.0, Noise(0))["loss"] for m in (model, wider))
    torch.testing.assert_close(first, second)


# ---------------------------------------------------------------------------------------------------- groups and mixing
def test_group_weights_balance_groups():
    groups = torch.tensor([0, 0, 0, 0, 0, 0, 1, 3, 3])
    weights = balanced(groups, 4)
    assert weights.tolist() == pytest.approx([0.5, 3.0, 0.0, 1.5]) and weights[groups].mean() == pytest.approx(1)
    model = built("reweighting", TOY).balance(toy_batch(*TOYS[TOY][1:])["group"])
    assert model.weights.max() > 2 > 1 > model.weights[model.weights > 0].min()


def test_groupdro_follows_algorithm_1():
    model, batch = built("groupdro", TOY, algorithm("groupdro").settings(eta=0.5)), toy_batch(*TOYS[TOY][1:])
    batch = {name: value[(batch["group"] != 1) & (batch["group"] != 8)] for name, value in batch.items()}
    model.network.eval()
    losses, q = cross_entropy(model.network(batch["image"]), batch["label"]), torch.full((9,), 1 / 9)
    there = torch.tensor([bool((batch["group"] == g).any()) for g in range(9)])
    risks = torch.stack([losses[batch["group"] == g].mean() if there[g] else torch.zeros(()) for g in range(9)])
    assert there.sum() == 7
    for _ in range(3):
        q = q * torch.exp(0.5 * torch.where(there, risks, risks[there].mean()))  # of those that were never seen: nothing is known
        q = q / q.sum()
        loss = model.objective(batch, 0.0, Noise(0))["loss"]
        torch.testing.assert_close(loss, q @ risks)
    torch.testing.assert_close(model.q, q.detach())
    assert {"q", "latest"} <= model.state_dict().keys()


def test_groupdro_remembers_a_group_that_a_batch_lacks():
    model, batch = built("groupdro", TOY, algorithm("groupdro").settings(eta=0.5)), toy_batch(*TOYS[TOY][1:])
    model.network.eval()
    model.objective(batch, 0.0, Noise(0))
    rare = int(torch.bincount(batch["group"])[1:].argmax()) + 1
    latest, q = model.latest[rare].clone(), model.q.clone()
    without = {name: value[batch["group"] != rare] for name, value in batch.items()}
    model.objective(without, 0.0, Noise(0))
    expected = q * torch.exp(0.5 * torch.where(model.latest >= 0, model.latest, model.latest[model.latest >= 0].mean()))
    assert model.latest[rare] == latest > 0
    torch.testing.assert_close(model.q, expected / expected.sum())


def test_equal_risks_leave_groupdro_as_it_is_however_rare_a_group():
    model = built("groupdro", TOY, algorithm("groupdro").settings(eta=0.1))
    torch.nn.init.zeros_(model.network.head.weight)
    torch.nn.init.zeros_(model.network.head.bias)
    generator, missed = torch.Generator().manual_seed(0), 0
    frequent = torch.tensor([0.1, 0.3, 0.05, 0.1, 0.2, 0.1, 0.1, 0.04, 0.01])
    for _ in range(50):
        group = torch.multinomial(frequent, 16, replacement=True, generator=generator)
        missed += int((torch.bincount(group, minlength=9) == 0).sum())
        images = torch.rand(16, *TOYS[TOY][1], generator=generator)
        model.objective({"image": images, "label": group // 3, "group": group}, 0.0, Noise(0))
    assert missed > 100
    torch.testing.assert_close(model.q, torch.full((9,), 1 / 9))


@pytest.mark.parametrize("classes, domains", [(2, 2), (3, 4), (2, 1)])
def test_partners_are_of_the_wanted_kind_and_all_alike_probable(classes, domains):
    generator = torch.Generator().manual_seed(0)
    same, other = torch.randint(classes, (40,), generator=generator), torch.randint(domains, (40,), generator=generator)
    counts = torch.zeros(40, 40)
    for _ in range(2000):
        found = partner(same, other, torch.rand(40, generator=generator))
        counts[torch.arange(40), found] += 1
    wanted = (same[:, None] == same) & (other[:, None] != other)
    alone = ~wanted.any(1)
    assert not counts[~alone][~wanted[~alone]].any() and torch.equal(counts[alone], 2000 * torch.eye(40)[alone])
    expected = (2000 / wanted.sum(1).clamp(min=1))[:, None].expand(40, 40)
    assert ((counts - expected).abs() < 6 * expected.sqrt())[wanted].all()


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_shares_of_blends_are_beta(alpha):
    shares = beta(uniform(torch.randn(40_000, generator=torch.Generator().manual_seed(0))), alpha)
    assert shares.mean() == pytest.approx(0.5, abs=0.01) and shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)


def test_mixup_blends_images_and_losses():
    model, batch = built("mixup", "two classes, vectors"), toy_batch(*TOYS["two classes, vectors"][1:])
    loss = model.objective(batch, 0.0, Noise(3))["loss"]
    noise = Noise(3)
    other, share = noise(ROWS, 1)[:, 0].argsort(), beta(uniform(noise(ROWS, 1)[:, 0]), 0.2)
    for i in (0, 17, 95):
        image = share[i] * batch["image"][i] + (1 - share[i]) * batch["image"][other[i]]
        p, label = model.network(image[None]).log_softmax(-1)[0], batch["label"]
        assert loss[i].item() == pytest.approx(-(share[i] * p[label[i]] + (1 - share[i]) * p[label[other[i]]]).item(), rel=1e-4)


def test_label_smoothing_is_torchs():
    model, batch, terms = parts("label-smoothing", smoothing=0.3)
    expected = F.cross_entropy(model.network(batch["image"]), batch["label"], reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(terms["loss"], expected, check_dtype=False)


def test_gridmask_drops_a_grid_of_squares():
    settings = GridMaskSettings(shortest=0.5, longest=0.5, ratio=0.75)
    still = grid([torch.zeros(1)] * 4, (16, 16), settings)[0]  # tiles of 8, squares of 2, counted from the middle
    rows = torch.zeros(16, dtype=torch.bool)
    rows[[0, 1, 8, 9]] = True
    assert torch.equal(still, rows[:, None] & rows[None])
    chances = list(torch.rand(4, 400, generator=torch.Generator().manual_seed(0)))
    made = grid(chances, (24, 40), GridMaskSettings())
    assert made.float().mean() == pytest.approx(0.4**2, abs=0.01) and made.float().mean((1, 2)).std() > 0
    assert torch.equal(made[7:9], grid([chance[7:9] for chance in chances], (24, 40), GridMaskSettings()))


def test_gridmask_drops_to_grey():
    toy, seen = "two classes, vectors", []
    model, batch = built("gridmask", toy, algorithm("gridmask").settings(rise=0.0, probability=1.0)), toy_batch(*TOYS[toy][1:])
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batch["image"] = torch.rand(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model.objective(batch, 0.0, Noise(0))
    changed = seen[0] != batch["image"]
    assert 0.1 < changed.float().mean() < 0.25 and (seen[0][changed] == 0.5).all()


def test_gridmask_sets_in():
    toy = "two classes, vectors"
    model, batch = built("gridmask", toy, algorithm("gridmask").settings(rise=0.5)), toy_batch(*TOYS[toy][1:])
    plain = cross_entropy(model.network(batch["image"]), batch["label"])
    torch.testing.assert_close(model.objective(batch, 0.0, Noise(0))["loss"], plain)
    changed = [int((model.objective(batch, progress, Noise(0))["risk"] - plain).abs().gt(1e-6).sum()) for progress in (0.1, 0.5, 1.0)]
    assert 0 < changed[0] < changed[1] == changed[2] < ROWS


# ---------------------------------------------------------------------------------------------------- counterfactuals
def test_counterfactual_augmentation_is_erm_on_both():
    toy = "two classes, vectors"
    model, batch = built("cf-augmentation", toy, algorithm("cf-augmentation").settings(share=0.3)), toy_batch(*TOYS[toy][1:])
    batch["counterfactual"] = batch["counterfactual"][:, :1]
    imagined = {**batch, "image": batch["counterfactual"][:, 0].float() / 255}
    risks = [cross_entropy(model.network(b["image"]), b["label"]) for b in (batch, imagined)]
    torch.testing.assert_close(model.objective(batch, 0.0, Noise(0))["loss"], 0.7 * risks[0] + 0.3 * risks[1])


def test_consistency_asks_nothing_of_a_classifier_that_ignores_the_spurious():
    toy = "two classes, vectors"
    model, batch = built("cf-consistency", toy), toy_batch(*TOYS[toy][1:])
    batch["counterfactual"] = (batch["image"] * 255).round().to(torch.uint8)[:, None]
    batch["image"] = batch["counterfactual"][:, 0].float() / 255
    terms = model.objective(batch, 0.0, Noise(0))
    assert terms["divergence"].abs().max() < 1e-6
    torch.testing.assert_close(terms["loss"], terms["risk"], atol=1e-5, rtol=1e-5)


def test_divergence_is_that_of_jensen_and_shannon():
    p, q = torch.tensor([[0.5, 0.5], [1.0, 1e-30], [0.9, 0.1]]), torch.tensor([[0.5, 0.5], [1e-30, 1.0], [0.6, 0.4]])
    mean = (p + q) / 2
    expected = 0.5 * (p * (p / mean).log() + q * (q / mean).log()).sum(1)
    torch.testing.assert_close(jensen_shannon(p.log(), q.log()), expected)
    assert jensen_shannon(p.log(), q.log())[1].item() == pytest.approx(math.log(2))


def test_dfr_trains_the_head_alone():
    model, batch = built("dfr", TOY), toy_batch(*TOYS[TOY][1:])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.update(batch, torch.optim.SGD(model.parameters(), 0.1), noise=Noise(0))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"network.head.weight", "network.head.bias"}


# ---------------------------------------------------------------------------------------------------- means and processes
def test_means_by_index():
    values, index = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 2, 2])
    means, counts = means_by(values, index, 4)
    assert means.tolist() == [1.5, 0, 6.5, 0] and counts.tolist() == [2, 0, 2, 0] and mean_of_present(means, counts) == 4
    assert torch.equal(means_by(values[:, None].expand(4, 3), index, 4)[0], means[:, None].expand(4, 3))


def test_gradient_variances_of_one_output_are_those_of_the_logistic_loss():
    labels, output = torch.tensor([0, 1, 1]), torch.tensor([[0.3], [-1.0], [2.0]])
    logits = torch.cat([-output / 2, output / 2], 1)
    torch.testing.assert_close(by_outputs(logits, labels, 1), output.sigmoid() - labels[:, None].float())
    constant = gradient_variances(torch.ones(3, 2), torch.ones(3, 1), torch.zeros(3, dtype=torch.long), torch.tensor([3.0]))
    assert constant.tolist() == [[0, 0, 0]]


STILL = {"cf-f": algorithm("cf-f").settings(cf="mean", factual="none")}  # settings that draw no random numbers


def test_two_processes_compute_what_one_does(tmp_path):
    """Loss and gradients of penalties on halves of a batch, averaged over two gloo processes as data parallelism does."""
    script, names = tmp_path / "halves.py", ["erm", "irm", "vrex", "fishr", "coral", "groupdro", "label-smoothing", "cf-f"]
    script.write_text(textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
        import torch
        from torch import distributed
        from tests.experiments.algorithms.test_registry import STILL, TOYS, built, toy_batch
        from mechanisms.training.noise import Noise
        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        batch = {{name: value[rank::2] for name, value in toy_batch((1, 4, 4), 2, seed=3).items()}}
        assert (~batch["mask"].flatten(1).any(1)).sum() == (16, 0)[rank]  # so that means of each process alone would differ
        for name in {names!r}:
            model = built(name, "two classes, vectors", STILL.get(name), l2=0.01)
            loss = model.train()(batch, Noise(0, rank=rank, world=2), 1.0)["loss"].mean()
            loss.backward()
            for p in model.parameters():
                distributed.all_reduce(p.grad)
                p.grad /= 2
            distributed.all_reduce(loss.detach_())
            if rank == 0:
                torch.save({{"loss": loss / 2, "gradients": [p.grad for p in model.parameters()]}}, {str(tmp_path)!r} + f"/{{name}}.pt")
        distributed.barrier()
        distributed.destroy_process_group()
    """))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(launch, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    batch = toy_batch((1, 4, 4), 2, seed=3)
    for name in names:
        model = built(name, "two classes, vectors", STILL.get(name), l2=0.01)
        loss = model.train()(batch, Noise(0), 1.0)["loss"].mean()
        loss.backward()
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(two["loss"], loss.detach(), msg=lambda m, n=name: f"{n}: {m}")
        for parameter, gradient in zip(model.parameters(), two["gradients"], strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
