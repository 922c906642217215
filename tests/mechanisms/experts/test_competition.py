"""Experts and discriminators, the update of their competition, and the figures by which specialisation is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import UserError
from mechanisms.experts import competition
from mechanisms.experts.competition import Competition
from mechanisms.experts.evaluation import evaluate, summary, table, warn_if_won, warnings_of
from mechanisms.experts.metrics import assignment, confusion, over_seeds, specialisation, specialists
from mechanisms.experts.model import Experts
from mechanisms.experts.networks import EXPERTS, Discriminator, bounded
from mechanisms.experts.options import ExpertsConfig
from mechanisms.training.noise import Noise
from tests.errors import naming

ROOT = Path(__file__).resolve().parents[3]
GREY, COLOUR = (1, 16, 16), (3, 16, 16)
SMALL = ExpertsConfig(experts=3, width=4, reach=2, latent=4, discriminator_width=4)


def images(shape: tuple[int, int, int] = GREY, count: int = 8) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(5))


def batch(shape: tuple[int, int, int] = GREY, count: int = 8) -> dict[str, Tensor]:
    return {"image": images(shape, count), "canonical": (255 * images(shape, count).flip(0)).to(torch.uint8)}


def made(config: ExpertsConfig = SMALL, shape: tuple[int, int, int] = GREY) -> Competition:
    torch.manual_seed(0)
    return Competition(Experts(shape, config)).train()


# ---------------------------------------------------------------------------------------------------- networks
@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("shape", [GREY, COLOUR, (1, 8, 20)])
def test_experts_keep_shape_and_range_and_every_weight_learns(kind, shape):
    torch.manual_seed(0)
    expert, x = EXPERTS[kind](shape, SMALL), images(shape)
    out = expert(x)
    assert out.shape == x.shape and 0 <= out.min() and out.max() <= 1
    if kind == "vae":
        out, kl = expert.reconstruct(x, torch.randn(len(x), SMALL.latent))
        assert kl.shape == (len(x),) and kl.min() > 0
    (out - 0.5 * x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in expert.parameters())
    still = {"residual": 0, "cnn": 4, "vae": 6}[kind]  # biases before a norm
    assert sum(bool(p.grad.abs().sum() > 0) for p in expert.parameters()) >= len(list(expert.parameters())) - still


@pytest.mark.parametrize("kind", ["compact", "published", "domain"])
@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("shape", [GREY, COLOUR, (1, 32, 32), (1, 12, 20)])
def test_discriminators_give_one_logit_an_image(kind, spectral, shape):
    logits = Discriminator(shape, replace(SMALL, discriminator=kind, spectral=spectral))(images(shape))
    assert logits.shape == (8,) and torch.isfinite(logits).all() and logits.std() > 0


def test_a_residual_expert_starts_almost_at_the_identity():
    config, x = ExpertsConfig(), images((1, 32, 32))
    for seed in range(5):
        torch.manual_seed(seed)
        start, elsewhere = (EXPERTS["residual"]((1, 32, 32), replace(config, identity=flag))(x).detach() for flag in (True, False))
        assert 0 < float((start - x).square().mean()) < config.identity_error < float((elsewhere - x).square().mean())


def test_a_residual_expert_can_undo_a_translation():
    """By its linear filter alone, one weight of which is the translation."""
    config, point = replace(SMALL, reach=4), torch.zeros(1, 1, 16, 16)
    expert = EXPERTS["residual"](GREY, config)
    point[..., 9, 12] = 1
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.zero_()
        expert.filter[0, 0, 4, 4] = -1 / 10  # takes the identity away
        expert.filter[0, 0, 4, 8] = 1 / 10  # and brings what is 4 pixels to the right
    assert expert(point)[0, 0].nonzero().tolist() == [[9, 8]]


def test_a_bounded_value_can_come_back_but_not_go_further_out():
    value = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    out = bounded(value)
    assert out.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    out.backward(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
    assert value.grad.tolist() == [0, -1, 1, -1, 1, 0]  # descent adds the negative gradient


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 18, 16), (1, 16, 30), (1, 4, 4)])
def test_shapes_that_do_not_suit(shape):
    with pytest.raises(UserError, match=naming(shape[0], shape[1], shape[2], "8 4 --option size=64")):
        Experts(shape, SMALL)


# ---------------------------------------------------------------------------------------------------- inverting
@pytest.mark.parametrize("kind", EXPERTS)
def test_all_experts_at_once_are_each_expert_alone(kind):
    model = made(replace(SMALL, expert=kind, identity=False)).experts.eval()
    with torch.no_grad():
        together = model.outputs(images())
        assert together.allclose(torch.stack([expert(images()) for expert in model.experts]), atol=1e-5)
    assert together.std(0).max() > 0.01


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_winner_is_the_expert_whose_output_scores_highest(kind):
    model = made(replace(SMALL, expert=kind, identity=False)).experts.eval()
    x = images(count=7)
    inverted = model.invert(x)
    assert inverted.scores.shape == (7, 3) and torch.equal(inverted.winner, inverted.scores.argmax(1))
    for k, w in enumerate(inverted.winner.tolist()):
        assert inverted.image[k].allclose(model.experts[w](x[k:k + 1])[0], atol=1e-6)
        assert inverted.scores[k, w].allclose(model.discriminator(inverted.image[k:k + 1])[0], atol=1e-5)


@pytest.mark.parametrize("x, message", [
    (torch.zeros(2, 1, 8, 8), "(2, 1, 8, 8) (B, 1, 16, 16)"), (torch.zeros(1, 16, 16), "(1, 16, 16) (B, 1, 16, 16)"),
    (torch.full((1, 1, 16, 16), 255.0), "[0, 1] 255"), (torch.full((1, 1, 16, 16), float("nan")), "NaN"),
    (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), "[0, 1] 255"), (np.zeros((1, 1, 16, 16)), "ndarray torch.as_tensor")])
def test_images_that_cannot_be_inverted(x, message):
    with pytest.raises(UserError, match=naming(message)):
        made().experts.invert(x)


# ---------------------------------------------------------------------------------------------------- competing
def gradients(model: Competition, term: str, **settings: float) -> tuple[dict[str, float], dict[str, Tensor]]:
    terms = model(batch(), Noise(0), settings.get("progress", 0.9))
    terms[term].mean().backward()
    return {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in model.named_parameters()}, terms


def test_gradients_do_not_cross():
    found, _ = gradients(made(), "discriminator")
    assert all((value > 0) == ("discriminator" in name) for name, value in found.items())
    found, _ = gradients(made(), "experts")
    assert all(value == 0 for name, value in found.items() if "discriminator" in name) and any(found.values())


class Fixed(torch.nn.Module):
    """A discriminator of one weight: the logit is ``weight`` × mean brightness."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((1, 2, 3))


def judged(weight: float, **settings: float) -> Competition:
    """A competition before a discriminator that is known, without noise on what it sees."""
    model = made(replace(SMALL, instance_noise=0.0, **{"penalty": 0.0, "reseed": 0.0} | settings))
    model.experts.discriminator = Fixed(weight)
    return model


def test_losses_are_the_cross_entropies_of_the_paper():
    """D: −log D(c) − log(1 − D(E_j(x'))); experts: −log D(E_w(x')), closed forms for a known discriminator."""
    model, given = judged(3.0, winners=1.0, balance=0.0), batch()
    terms = model(given, Noise(0), 0.5)
    with torch.no_grad():
        best = model.experts.scores(model.experts.outputs(given["image"])).max(0).values
    real = torch.sigmoid(3.0 * given["canonical"].float().mean((1, 2, 3)) / 255)
    assert terms["discriminator"].allclose(-real.log() - (1 - torch.sigmoid(best)).log(), atol=1e-5)
    assert terms["experts"].allclose(-torch.sigmoid(best).log(), atol=1e-5)


def test_the_discriminator_meets_winners_for_the_share_that_is_asked():
    """Everybody's outputs score less than winners' do, so the discriminator's loss on them is smaller."""
    anyone, half, winners = (judged(30.0, winners=share, balance=0.0)(batch(count=256), Noise(0), 0.5)["discriminator"].mean()
                             for share in (0.0, 0.5, 1.0))
    assert anyone < half < winners


def test_the_penalty_is_half_lambda_times_the_squared_slope():
    """Of a linear D with weight w on the mean of n pixels, the slope along a standard normal is N(0, w²/n)."""
    without, mild, strong = (judged(40.0, penalty=penalty, winners=1.0, balance=0.0)(batch(count=512), Noise(0), 0.5)["discriminator"]
                             for penalty in (0.0, 1.0, 3.0))
    added = (mild - without).detach()
    assert (strong - without).allclose(3 * added, rtol=1e-3, atol=1e-5)
    assert added.mean() == pytest.approx(0.5 * 40.0**2 / 256, rel=0.1)


def test_an_expert_learns_the_inverse_of_its_mechanism():
    """Law: its inverse direction is what it learned. Canonical images are bright squares on black, transformed ones inverted."""
    order = torch.Generator().manual_seed(0)
    clean = torch.zeros(400, 1, 16, 16)
    for image, (top, left) in zip(clean, torch.randint(2, 9, (400, 2), generator=order).tolist(), strict=True):
        image[:, top:top + 5, left:left + 5] = 1
    canonical, moved = (255 * clean[:200]).to(torch.uint8), 1 - clean[200:]
    model, noise = made(replace(SMALL, experts=1, discriminator_width=8)), Noise(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.5, 0.99))
    for step in range(300):
        rows = torch.randint(200, (2, 24), generator=order)
        terms = model({"image": moved[rows[0]], "canonical": canonical[rows[1]]}, noise, step / 300)
        optimizer.zero_grad()
        terms["loss"].mean().backward()
        optimizer.step()
    restored = model.experts.eval().invert(moved).image
    assert (restored - clean[200:]).abs().mean() < 0.3 * (moved - clean[200:]).abs().mean()


def test_a_broken_batch_breaks_no_memory():
    model = made(replace(SMALL, reseed=0.0))
    before = [model.favour.clone(), model.usage.clone()]
    scores = torch.full((3, 8), float("nan"))
    model._assigned(scores, Noise(0), 0.1)
    assert torch.equal(model.favour, before[0]) and torch.equal(model.usage, before[1])


def test_nobody_trains_a_discriminator_before_experts_compete():
    model = made(replace(SMALL, expert="cnn"))
    terms = model(batch(), Noise(0), 0.0)
    assert terms["discriminator"].abs().max() == 0
    with pytest.warns(UserWarning, match=naming("--identity-error 0.002 --identity-share 0.3")):
        assert model(batch(), Noise(0), 0.5)["discriminator"].min() > 0


def test_only_winners_learn():
    model = made()
    with torch.no_grad():  # whatever expert 1 is given, it paints what the discriminator likes least of all
        scores = model.experts.scores(model.experts.outputs(images()))
        model.favour[1] = scores.min() - scores.max() - 1
    found, terms = gradients(model, "experts", progress=0.1)
    won = [float(terms[f"won_{j}"].sum()) for j in range(3)]
    assert won[1] == 0 and sum(won) == 8
    for j in range(3):
        assert any(value > 0 for name, value in found.items() if f"experts.experts.{j}." in name) == (won[j] > 0)


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"spectral": True, "penalty": 0.0}, {"instance_noise": 0.0}])
def test_terms_are_one_number_an_image(kind, settings):
    model = made(replace(SMALL, expert=kind, **settings))
    for progress in (0.0, 1.0):
        terms = model(batch(), Noise(0), progress)
        assert {v.shape for v in terms.values()} == {(8,)} and all(torch.isfinite(v).all() for v in terms.values())
        assert torch.equal(sum(terms[f"won_{j}"] for j in range(3)), torch.ones(8))
        assert terms["loss"].allclose(terms["discriminator"] + terms["experts"])
    assert model.eval()(batch(), Noise(0), 1.0)["loss"].shape == (8,)


def test_balance_favours_who_wins_too_little_until_assignment_is_free():
    model = made(replace(SMALL, balance=0.1, reseed=0.0))
    scores = torch.tensor([[1.0], [0.0], [-1.0]]).repeat(1, 12)
    before = torch.bincount(model._assigned(scores, Noise(0), 0.0), minlength=3)
    assert before.tolist() == [12, 0, 0] and model.favour[0] < 0 < model.favour[1]
    counts = sum(torch.bincount(model._assigned(scores, Noise(0), 0.0), minlength=3) for _ in range(300))
    assert counts.min() > 0.2 * counts.sum()
    for _ in range(1000):
        last = model._assigned(scores, Noise(0), 0.9)
    assert last.tolist() == [0] * 12 and model.favour.abs().max() < 1e-3


def test_balance_does_not_add_up_chance(monkeypatch):
    """Shares that are equal on average, but never in a batch: what is favoured forgets, instead of walking at random."""
    def drift(forgotten: float) -> float:
        monkeypatch.setattr(competition, "_FADE", forgotten)
        model = made(replace(SMALL, balance=0.1, reseed=0.0))
        found = []
        for k in range(2000):
            owner = torch.randint(3, (12,), generator=torch.Generator().manual_seed(k))
            model._assigned(40.0 * F.one_hot(owner, 3).T.float(), Noise(0), 0.0)  # each image has an expert that is far ahead
            found.append(model.favour.square().mean())
        return float(torch.stack(found).mean().sqrt())

    assert drift(competition._FADE) < 0.6 * drift(1.0)


def test_temperature_lets_others_win():
    scores = torch.tensor([[0.5], [0.0], [0.0]]).repeat(1, 300)
    cold, hot = (made(replace(SMALL, temperature=t, balance=0.0))._assigned(scores, Noise(0), 0.0) for t in (0.0, 1.0))
    shares = torch.bincount(hot, minlength=3) / 300
    assert cold.sum() == 0 and shares.allclose(torch.softmax(torch.tensor([0.5, 0.0, 0.0]), 0), atol=0.1)  # Gumbel-max


def test_an_idle_expert_becomes_a_copy_of_the_busiest():
    model = made(replace(SMALL, reseed=0.5, balance=0.0))
    model.usage.copy_(torch.tensor([0.9, 0.08, 0.02]))
    model._reseed(Noise(0))
    weights = [e.convs[0].weight for e in model.experts.experts]
    apart = (weights[2] - weights[0]).std() / weights[0].std()
    assert 0.02 < apart < 0.3 < (weights[1] - weights[0]).std() / weights[0].std()
    kept = weights[2].clone()
    model._reseed(Noise(0))
    assert torch.equal(weights[2], kept) and model.rest > 0  # it is left alone for a while


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("progress", [0.0, 0.31])  # in the identity phase and after it
def test_a_broken_batch_does_not_end_the_identity_phase(broken, progress):
    model = made(replace(SMALL, expert="cnn", identity_error=0.0025))
    model.identity_error.fill_(0.5)
    bad = batch()
    bad["image"] = torch.full_like(bad["image"], broken)
    model(bad, Noise(0), progress)
    assert model.identity_error == 0.5 and model.usage.isfinite().all() and model.favour.isfinite().all()
    assert model(batch(), Noise(0), 0.0)["experts"].max() < 0.5 and model.identity_error < 0.5  # it goes on


def test_others_first_reproduce_their_input():
    model = made(replace(SMALL, expert="cnn", identity_error=0.0025))
    first = model(batch(), Noise(0), 0.0)["experts"]
    assert first.max() < 0.5 and model.identity_error < 1  # a squared error, not a cross-entropy
    model.identity_error.fill_(0.001)
    assert model(batch(), Noise(0), 0.0)["experts"].min() > 0.3
    model.identity_error.fill_(1.0)
    assert model(batch(), Noise(0), 0.31)["experts"].min() > 0.3  # enough of it, whatever the error


@pytest.mark.parametrize("given, message", [
    ({"experts": 0}, "1 --batch-size 48"), ({"experts": 49}, "--experts 49 1 --batch-size 48"), ({"width": 0}, "--width 0"),
    ({"penalty": -1.0}, "--penalty -1.0"), ({"free": 1.5}, "--free 1.5"), ({"beta": float("nan")}, "--beta nan")])
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=naming(message)):
        ExpertsConfig(**given).check(48)


# ---------------------------------------------------------------------------------------------------- figures
def counts_of(winner: list[int], mechanism: list[int], experts: int, mechanisms: int) -> np.ndarray:
    return confusion(torch.tensor(winner), torch.tensor(mechanism), experts, mechanisms)


def test_perfect_specialisation_in_any_order():
    found = specialisation(counts_of([2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2], 3, 3))
    assert found["purity"] == found["nmi"] == found["hungarian"] == 1 and found["collapsed"] == found["idle"] == 0
    assert found["usage_entropy"] == pytest.approx(np.log(3))


def test_known_failures():
    one = specialisation(counts_of([0, 0, 0, 0], [0, 1, 0, 1], 2, 2))
    assert (one["purity"], one["nmi"], one["hungarian"], one["usage_entropy"]) == (0.5, 0, 0.5, 0) and one["collapsed"] == 1
    split = specialisation(counts_of([0, 1, 2, 2], [0, 0, 1, 1], 3, 2))  # two experts share one mechanism
    assert split["purity"] == 1 and split["hungarian"] == 0.75 and split["nmi"] < 1 and split["collapsed"] == 1
    extra = specialisation(counts_of([0, 0, 1, 1], [0, 0, 1, 1], 4, 2))  # more experts than mechanisms, the rest idle
    assert extra["hungarian"] == 1 and extra["idle"] == 2 and extra["collapsed"] == 0
    lone = specialisation(counts_of([0, 0], [0, 0], 1, 1))
    assert lone["nmi"] == lone["hungarian"] == 1 and assignment(np.array([[0, 3], [2, 0]])) == {0: 1, 1: 0}


def test_only_who_has_found_a_mechanism_is_named_after_it():
    counts = np.array([[90, 0, 5], [10, 60, 0], [0, 40, 95], [0, 0, 0]])
    assert specialists(counts) == {0: 0, 1: 1, 2: 2}
    counts[1, 1], counts[2, 1] = 40, 60  # more of the second mechanism is won by who has another one
    assert specialists(counts) == {0: 0, 2: 2} and set(assignment(counts)) >= {1}


def test_mutual_information_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    winner, mechanism = random.integers(0, 4, 200), random.integers(0, 3, 200)
    found = specialisation(counts_of(winner.tolist(), mechanism.tolist(), 4, 3))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(mechanism, winner))


@pytest.mark.parametrize("winner, mechanism", [([], []), ([0], [0, 1]), ([3], [0]), ([0], [5])])
def test_winners_that_do_not_fit(winner, mechanism):
    with pytest.raises(UserError):
        counts_of(winner, mechanism, 2, 2)


def test_over_seeds():
    found = over_seeds([{"nmi": 0.5, "collapsed": 0.0}, {"nmi": 0.7, "collapsed": 1.0}])
    assert found["nmi"]["mean"] == pytest.approx(0.6) and found["nmi"]["error"] == pytest.approx(0.1)
    assert found["collapsed"] == {"count": 1, "of": 2} and over_seeds([{"nmi": 0.5}])["nmi"]["error"] is None


def test_experts_that_undo_what_was_done_restore_the_clean_image():
    """Inversion undone by one expert, nothing by the other: known points of every figure."""
    model = made(replace(SMALL, experts=2, reach=1)).experts.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.experts[1].filter[0, 0, 1, 1] = -0.2  # x − 2x
        model.experts[1].shift[0] = 0.1  # + 1
        linear = model.discriminator.layers[-1]
        model.discriminator.layers[1].weight[0].fill_(-1.0)  # the darker, the more canonical
        for layer in (3, 5):
            model.discriminator.layers[layer].weight[0, 0, 1, 1] = 1.0
        linear.weight.view(1, -1)[0, :] = 1.0
    clean = 0.3 * images()
    moved, mechanism = torch.cat([clean, 1 - clean]), torch.arange(2).repeat_interleave(8)
    found = evaluate(model, moved, mechanism, ("none", "invert"), torch.cat([clean, clean]))
    assert found["figures"]["hungarian"] == 1 and found["found"] == {"0": "none", "1": "invert"} and found["usage"] == [0.5, 0.5]
    assert found["figures"]["error_restored"] == pytest.approx(0, abs=1e-3) and found["figures"]["error_transformed"] > 50
    results = {0: found, 1: found}
    assert "| hungarian" in table(results) and "1.000 ± 0.000" in table(results) and "0 of 2" in table(results)
    assert summary(results)["over_seeds"]["collapsed"]["of"] == 2


def test_a_discriminator_that_wins_outright_is_named(tmp_path):
    def log(loss: float) -> None:
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, "valid": {"experts": loss}}) + "\n")

    log(5.0)
    (won,) = warnings_of(tmp_path, [0.5, 0.5])
    assert "won outright" in won and "Raise --penalty" in won
    with pytest.warns(UserWarning, match=naming("--penalty --instance-noise --discriminator-width --spectral")):
        warn_if_won({"experts": 5.0})
    with warnings.catch_warnings(action="error"):
        warn_if_won({"experts": 0.9})
    log(0.9)
    assert warnings_of(tmp_path, [0.5, 0.5]) == [] and "experts 1 win (almost) nothing" in warnings_of(tmp_path, [1.0, 0.0])[0]


def test_two_processes_compete_as_one_does(tmp_path):
    """``torchrun`` on the CPU: the same batches, noise and memory of who won; and the run is judged once."""
    flags = ["--transforms", "right,invert", "--experts", "2", "--width", "4", "--reach", "2", "--discriminator-width", "4", "--steps", "8",
             "--batch-size", "8", "--validations", "2", "--device", "cpu", "--balance", "0.5", "--seeds", "2"]
    flags += [word for name, count in (("train", 60), ("valid", 20), ("test", 20)) for word in ("--option", f"{name}_digits={count}")]
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent("""
        import sys
        from dataclasses import replace
        from mechanisms.runs.command import run_command
        from mechanisms.experts import classifier
        from mechanisms.experts.__main__ import main
        from mechanisms.experts.options import Options
        classifier.SETTINGS = replace(classifier.SETTINGS, steps=3)
        run_command(Options, main, sys.argv[1:])
    """))
    launches = {"one": [sys.executable], "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, launch in launches.items():
        command = [*launch, str(script), *["--"] * (name == "two"), *flags, "--run", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0 and done.stdout.count("| hungarian") == 1, done.stderr
    for seed in (0, 1):
        one, two = (Experts.load(tmp_path / name, seed).state_dict() for name in launches)
        for key, weight in two.items():
            torch.testing.assert_close(weight, one[key], rtol=1e-3, atol=1e-5, msg=lambda text, k=key: f"{k}: {text}")
