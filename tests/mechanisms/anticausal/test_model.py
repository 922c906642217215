"""Decorrelated data, predictors of attributes, and the command that fits and tests them."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal

from datasets import CausalDataset, Graph, Variable, open_dataset
from datasets.base import Split
from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.schema import SchemaError
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.anticausal.decorrelate import (
    MAX_WEIGHT,
    Decorrelated,
    chosen,
    decorrelated,
    dependence,
    effective_size,
    independence_weights,
    joined,
    resample,
)
from mechanisms.anticausal.fit import train_predictors
from mechanisms.anticausal.model import Predictors, load_predictors, quantiles
from mechanisms.anticausal.options import DEFAULTS, Options
from mechanisms.anticausal.scores import blind, figures, off_distribution, report
from mechanisms.base import term_of
from mechanisms.predictors import main
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load, read_json, save
from mechanisms.training.config import RunOptions
from mechanisms.training.noise import seeded
from tests.errors import naming, says

TINY = PredictorConfig(width=8, blocks=1, features=16)
DIGITS = ("train_digits=96", "valid_digits=32", "test_digits=32", "renderings=1")
QUICK = ["--device", "cpu", "--precision", "fp32", "--width", "8", "--blocks", "1", "--steps", "6"]


class Lazy:
    """Images that are read one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.images[row]


@dataclass
class Boxes(CausalDataset):
    """An upper half as bright as ``upper``, a lower half as bright as ``lower``, and a coloured edge; all agree mostly."""

    wanted: tuple[str, ...] = ("upper", "lower", "colour")
    size: int = 600
    lazy: bool = False
    shape: ClassVar[tuple[int, int, int]] = (3, 10, 14)

    def __post_init__(self) -> None:
        everything = {"upper": Variable("upper", "interval", low=0, high=1), "lower": Variable("lower", "real"),
                      "colour": Variable("colour", "categorical", classes=3)}
        self.variables = (*(everything[n] for n in self.wanted), Variable("image", "image", self.wanted, shape=self.shape))

    def load(self, split):
        generator = seeded({"train": 0, "valid": 1, "test": 2}[split])
        upper = torch.rand(self.size, generator=generator).clamp(0.01, 0.99)
        other, agree = torch.rand(2, self.size, generator=generator), torch.rand(2, self.size, generator=generator) < 0.7
        lower = torch.where(agree[0], upper, other[0])
        colour = (3 * torch.where(agree[1], upper, other[1])).long().clamp(max=2)
        images = torch.zeros(self.size, *self.shape)
        images[:, :, :5] = 0.1 + 0.6 * upper[:, None, None, None]
        images[:, :, 5:] = 0.1 + 0.6 * lower[:, None, None, None]
        images[..., -3:] = 0
        images[torch.arange(self.size), colour, :, -3:] = 1
        images = (images * 255).round().to(torch.uint8)
        values = {"upper": upper, "lower": lower, "colour": colour}
        return {**{n: values[n] for n in self.wanted}, "image": Lazy(images) if self.lazy else images}


@pytest.fixture(scope="module")
def digits() -> CausalDataset:
    return open_dataset("morphomnist", {"train_digits": 200, "valid_digits": 40, "test_digits": 40, "renderings": 1, "workers": 1})


def random_model(dataset: CausalDataset, config: PredictorConfig = TINY, seed: int = 0) -> Predictors:
    torch.manual_seed(seed)
    return Predictors(dataset.graph, config).eval()


# ---------------------------------------------------------------------------------------------------- weights
COINS = [Variable("a", "binary"), Variable("b", "categorical", classes=3)]


def joint_rows() -> tuple[dict[str, Tensor], Tensor]:
    """Rows with exactly the joint frequencies of a table ``(2, 3)``."""
    table = torch.tensor([[50, 20, 10], [4, 6, 10]])
    cells = [(a, b) for a in range(2) for b in range(3) for _ in range(int(table[a, b]))]
    return {"a": torch.tensor([c[0] for c in cells]), "b": torch.tensor([c[1] for c in cells])}, table.double() / table.sum()


def test_weights_of_a_known_joint_are_exact():
    values, joint = joint_rows()
    weights = independence_weights(COINS, values)
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    assert torch.allclose(weights, (product / joint)[values["a"], values["b"]])
    weighted = torch.zeros(2, 3, dtype=torch.float64).index_put_((values["a"], values["b"]), weights / weights.sum(), accumulate=True)
    assert torch.allclose(weighted, product)
    # the identity E_p[w f] = E_Πp[f], for any f
    f = torch.randn(2, 3, generator=seeded(0), dtype=torch.float64)
    assert torch.allclose((weights * f[values["a"], values["b"]]).mean(), (product * f).sum())


def test_resampling_recovers_the_product_of_marginals():
    values, joint = joint_rows()
    index = resample(independence_weights(COINS, values), 200_000, seeded(0))
    counts = torch.bincount(3 * values["a"][index] + values["b"][index], minlength=6).view(2, 3) / len(index)
    assert (counts - joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)).abs().max() < 1e-4
    assert dependence(COINS, values) > 0.3
    assert dependence(COINS, {n: v[index] for n, v in values.items()}) < 1e-3


def test_independent_variables_need_no_weights():
    a, b = torch.arange(2).repeat(300), torch.arange(3).repeat_interleave(2).repeat(100)
    assert torch.allclose(independence_weights(COINS, {"a": a, "b": b}), torch.ones(600, dtype=torch.float64))


@pytest.mark.parametrize("kinds", ["real real", "real binary", "positive real categorical"])
def test_weights_take_most_of_the_dependence_of_continuous_variables(kinds):
    generator = seeded(1)
    common = torch.randn(5000, generator=generator)
    variables, values = [], {}
    for k, kind in enumerate(kinds.split()):
        own = 0.8 * common + 0.6 * torch.randn(5000, generator=generator)
        all_kinds = {"real": own, "positive": own.exp(), "binary": (own > 0).long(), "categorical": (own > 0).long() + (own > 1)}
        values[f"v{k}"] = all_kinds[kind]
        variables.append(Variable(f"v{k}", kind, classes=3 if kind == "categorical" else ()).fitted(values[f"v{k}"]))
    weights = independence_weights(variables, values)
    index = resample(weights, 5000, generator)
    before, after = dependence(variables, values), dependence(variables, {n: v[index] for n, v in values.items()})
    assert before > 0.4 and after < 0.3 * before
    assert 50 < effective_size(weights) < 5000 and weights.mean() == pytest.approx(1) and bool((weights > 0).all())


def test_weights_are_cut_off():
    a = torch.cat([torch.zeros(2000), torch.ones(2000)]).long()
    b = a.clone()
    b[0] = 1  # one row stands for a quarter of the product
    weights = independence_weights([Variable("a", "binary"), Variable("b", "binary")], {"a": a, "b": b})
    assert 0.9 * MAX_WEIGHT < weights[0] / weights[1:].mean() <= 2.1 * MAX_WEIGHT


def test_ties_are_one_bin():
    ages = torch.tensor([30.0] * 700 + [31.0] * 300)
    variable = Variable("age", "real").fitted(ages)
    sick = torch.cat([torch.arange(2).repeat(350), torch.arange(2).repeat(150)])
    assert torch.allclose(independence_weights([variable, Variable("sick", "binary")], {"age": ages, "sick": sick}),
                          torch.ones(1000, dtype=torch.float64))


def test_effective_size_at_its_known_points():
    assert effective_size(torch.full((7,), 3.0)) == pytest.approx(7)
    assert effective_size(torch.tensor([0.0, 5.0, 0.0])) == pytest.approx(1)
    assert effective_size(torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2)


def test_resampling_is_systematic():
    weights = torch.tensor([0.1, 2.0, 0.7, 1.2])
    counts = torch.bincount(resample(weights, 1000, seeded(3)), minlength=4)
    assert ((counts - 1000 * weights / weights.sum()).abs() <= 1).all() and counts.sum() == 1000
    assert torch.equal(torch.bincount(resample(torch.ones(50), 150, seeded(4))), torch.full((50,), 3))
    assert torch.equal(resample(weights, 99, seeded(5)), resample(weights, 99, seeded(5)))


# ---------------------------------------------------------------------------------------------------- decorrelated data
def test_rendering_makes_causes_independent(digits):
    made, train = decorrelated(digits, "train", renderings=2), digits.split("train")
    assert made.before > 0.85 and made.rendered == ("intensity", "thickness") and made.resampled == ()
    pair = [digits.graph[n] for n in ("thickness", "intensity")]
    assert dependence(pair, train.attributes) > 0.85 and dependence(pair, made.split.attributes) < 0.1
    assert len(made.split) == 400 == made.effective_size and made.warning == "" and "true process" in made.way
    assert torch.equal(torch.bincount(made.split.attributes["digit"]), 2 * torch.bincount(train.attributes["digit"]))
    for name in ("thickness", "intensity"):  # from the training marginal
        assert set(made.split.attributes[name].tolist()) <= set(train.attributes[name].tolist())
    batch = made.split.batch(slice(0, 50))
    measured = digits.measure(batch["image"])
    assert (measured["intensity"] - batch["intensity"]).abs().mean() < 2 and (measured["thickness"] - batch["thickness"]).abs().mean() < 0.2
    assert made.split.images.dtype == torch.uint8


def test_decorrelated_data_are_a_function_of_the_seed(digits):
    one, same, other = (decorrelated(digits, "valid", seed).split for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images) and not torch.equal(one.images, other.images)


@pytest.mark.parametrize("wanted", [("upper", "lower"), ("upper", "colour"), ("upper", "lower", "colour")])
@pytest.mark.parametrize("lazy", [False, True])
def test_without_a_process_rows_are_resampled(wanted, lazy):
    dataset = Boxes(wanted, lazy=lazy, size=3000)
    made = decorrelated(dataset, "train")
    assert made.resampled == tuple(sorted(wanted)) and made.rendered == () and len(made.split) == 3000
    assert made.after < 0.6 * made.before and 1 < made.effective_size < 3000
    batch, row = made.split.batch([7]), made.split.attributes["upper"][7]
    place = int((dataset.split("train").attributes["upper"] == row).nonzero()[0])
    assert torch.equal(batch["image"], dataset.split("train").batch([place])["image"])  # images go with their attributes
    assert made.split.in_memory != lazy


def test_poor_overlap_is_told():
    split = Split("train", torch.zeros(100, 1, 8, 8, dtype=torch.uint8), {})
    poor = Decorrelated(split, "importance resampling of a, b", (), ("a", "b"), 12.0, 0.95, 0.4)
    assert "100 rows are worth 12" in poor.warning and "Collect more" in poor.warning
    assert "correlation 0.95, then 0.40" in replace(poor, effective_size=60.0).warning  # bands that never overlap have even weights
    assert replace(poor, effective_size=60.0, after=0.1).warning == replace(poor, resampled=()).warning == ""


def test_a_single_cause_needs_nothing():
    dataset = Boxes(("colour",))
    made = decorrelated(dataset, "test")
    assert made.split is dataset.split("test") and made.before == made.after == 0 and "single cause" in made.way


@pytest.mark.parametrize("lazy", [False, True])
def test_joined_rows_keep_image_and_attributes_together(lazy):
    first, second = Boxes(lazy=lazy, size=30).split("train"), Boxes(lazy=lazy, size=50).split("valid")
    second = chosen(second, torch.arange(49, -1, -1))
    both = joined(first, second)
    assert len(both) == 80 and both.in_memory != lazy
    rows = both.batch(slice(0, 80))
    whole = {n: torch.cat([first.batch(slice(0, 30))[n], second.batch(slice(0, 50))[n]]) for n in rows}
    order = rows["upper"].argsort(), whole["upper"].argsort()
    assert not torch.equal(rows["upper"], whole["upper"])
    for name in rows:
        assert torch.equal(rows[name][order[0]], whole[name][order[1]])


# ---------------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 32, 32), (2, 40, 8)])
def test_any_image_size(shape):
    dose = Variable("dose", "positive").fitted(torch.rand(50, generator=seeded(0)) + 0.1)
    kind = Variable("kind", "categorical", classes=4).fitted(torch.arange(4))
    graph = Graph([dose, kind, Variable("image", "image", ("dose", "kind"), shape=shape)])
    model = Predictors(graph, replace(TINY, features=64)).eval()
    images = torch.rand(5, *shape, generator=seeded(1))
    assert model.features(images).shape == (5, 64) and model.names == ("dose", "kind")
    read = model.predict(images)
    assert read["dose"].shape == read["kind"].shape == (5,) and read["kind"].dtype == torch.int64 and (read["dose"] > 0).all()
    chances = model.probabilities(images)
    assert list(chances) == ["kind"] and torch.allclose(chances["kind"].sum(1), torch.ones(5))
    assert torch.equal(chances["kind"].argmax(1), read["kind"])


def test_log_prob_is_that_of_the_distributions():
    dataset = Boxes()
    model, batch = random_model(dataset), dataset.split("test").batch(slice(0, 9))
    log_prob, outputs = model.log_prob(batch["image"], batch), model._read(model.features(batch["image"]))
    assert torch.allclose(log_prob["colour"], Categorical(logits=outputs["colour"]).log_prob(batch["colour"]), atol=1e-6)
    assert torch.allclose(log_prob["colour"].exp(), model.probabilities(batch["image"])["colour"][range(9), batch["colour"]])
    for name in ("upper", "lower"):
        expected = Normal(outputs[name][:, 0], outputs[name][:, 1].exp()).log_prob(dataset.graph[name].unconstrain(batch[name]))
        assert torch.allclose(log_prob[name], expected, atol=1e-5)
        median = dataset.graph[name].constrain(outputs[name][:, 0])
        assert torch.equal(model.predict(batch["image"])[name], median)
    terms = model(batch)
    assert set(terms) == {"loss", *map(term_of, model.names)}
    assert all(torch.equal(terms[term_of(name)], -log_prob[name]) for name in model.names)


def test_attributes_weigh_alike_in_the_loss_however_finely_they_are_read():
    """The gradient of the loss by a Gaussian's mean is z, that of the negative log-density z/σ."""
    dataset = Boxes(("upper",))
    model, batch = random_model(dataset), dataset.split("test").batch(slice(0, 9))
    model.heads["q_upper"].bias.data[1] = -3.0
    mean, log_scale = model._read(model.features(batch["image"]))["upper"].unbind(1)
    z = (dataset.graph["upper"].unconstrain(batch["upper"]) - mean) / log_scale.exp()
    for term, expected in (("loss", -z), (term_of("upper"), -z / log_scale.exp())):
        (gradient,) = torch.autograd.grad(model(batch)[term].sum(), model.heads["q_upper"].bias)
        assert torch.allclose(gradient[0], expected.sum(), rtol=1e-3)


def test_gradients_reach_images_and_every_parameter():
    dataset = Boxes()
    model, batch = random_model(dataset).train(), dataset.split("test").batch(slice(0, 9))
    for name, parameter in model.named_parameters():
        if "convs.1.weight" in name:  # blocks begin as the identity
            parameter.data.normal_(std=0.1)
    images = batch["image"].requires_grad_()
    model({**batch, "image": images}, lambda *shape: torch.randn(*shape, generator=seeded(0)))["loss"].mean().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_noise_on_features_is_for_training_and_discrete_attributes_alone():
    dataset = Boxes()
    model, batch = random_model(dataset), dataset.split("test").batch(slice(0, 9))
    draw = lambda *shape: torch.randn(*shape, generator=seeded(0))  # noqa: E731
    plain, evaluated, noisy = model(batch), model(batch, draw), model.train()(batch, draw)
    assert all(torch.equal(plain[name], evaluated[name]) for name in plain)
    assert [name for name in model.names if not torch.equal(plain[term_of(name)], noisy[term_of(name)])] == ["colour"]


def test_quantiles_at_their_known_points():
    grey = torch.full((1, 2, 9, 5), 0.3)
    assert torch.equal(quantiles(grey), torch.full((1, 96), 0.3))
    ramp = torch.arange(2001.0).flip(0).view(1, 1, 3, 667) / 2000  # the level that a share s exceeds is 1 - s
    levels = quantiles(ramp)[0]
    shares = torch.logspace(-2.69897, -0.30103, 24)
    assert torch.allclose(levels[:24], 1 - shares, atol=1e-3) and torch.allclose(levels[24:], shares, atol=1e-3)
    mixed = ramp.flatten()[torch.randperm(2001, generator=seeded(0))].view(1, 1, 667, 3)
    assert torch.equal(quantiles(mixed), quantiles(ramp))


def test_an_image_without_causes_or_a_size_below_one_is_refused():
    with pytest.raises(SchemaError, match=naming("predictors")):
        Predictors(Graph([Variable("image", "image", shape=(1, 8, 8))]))
    with pytest.raises(UserError, match=naming("--width 0")):
        Predictors(Boxes().graph, PredictorConfig(width=0))


# ---------------------------------------------------------------------------------------------------- figures
def test_figures_at_their_known_points():
    length, kind = Variable("length", "real", unit="mm"), Variable("kind", "categorical", classes=3)
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert figures(length, target, target)["mae"] == {"value": 0.0, "error": 0.0}
    error = figures(length, target, target + torch.tensor([1.0, -1.0, 3.0, 3.0]))["mae"]
    assert error["value"] == 2.0 and error["error"] == pytest.approx((4 / 3) ** 0.5 / 2)
    classes = torch.tensor([0, 0, 1, 1])  # class 2 never occurs and counts in no mean
    perfect = figures(kind, classes, classes, torch.eye(3)[classes])
    assert (perfect["accuracy"]["value"], perfect["macro_f1"]["value"], perfect["auroc"]["value"]) == (1, 1, 1)
    half = figures(kind, classes, torch.zeros(4, dtype=torch.long), torch.full((4, 3), 1 / 3))
    assert half["accuracy"]["value"] == 0.5 and half["macro_f1"]["value"] == pytest.approx(1 / 3) and half["auroc"]["value"] == 0.5
    assert figures(kind, classes[:2], classes[:2], torch.eye(3)[:2])["auroc"]["value"] is None


def test_blind_predictions_look_at_nothing():
    length = Variable("length", "real").fitted(torch.tensor([0.0, 1.0, 5.0]))
    kind = Variable("kind", "categorical", classes=3).fitted(torch.tensor([0, 2, 2, 1]))
    assert torch.equal(blind(length, 4)[0], torch.full((4,), 2.0))
    predicted, chances = blind(kind, 4)
    assert torch.equal(predicted, torch.full((4,), 2)) and torch.equal(chances[1], torch.tensor([0.25, 0.25, 0.5]))


def results(metric: str, observed: tuple[float, float], independent: tuple[float, float]) -> dict:
    cells = [{metric: {"value": v, "error": e}} for v, e in (observed, independent, (1.0, 0.0))]
    attribute = {"unit": "px", **dict(zip(("observational", "decorrelated", "baseline"), cells, strict=True))}
    return {"rows": {"observational": 5, "decorrelated": 6}, "way": "somehow", "effective_size": 6.0,
            "correlation": {"observational": 0.9, "decorrelated": 0.0}, "attributes": {"size": attribute}}


@pytest.mark.parametrize(("metric", "observed", "independent", "told"), [
    ("mae", (0.1, 0.01), (0.2, 0.01), True), ("mae", (0.1, 0.01), (0.14, 0.01), False), ("mae", (0.1, 0.05), (0.2, 0.05), False),
    ("mae", (0.2, 0.01), (0.1, 0.01), False), ("accuracy", (0.98, 0.001), (0.9, 0.002), True),
    ("accuracy", (0.9, 0.001), (0.98, 0.002), False)])
def test_an_evaluator_off_its_distribution_is_named(metric, observed, independent, told):
    found = results(metric, observed, independent)
    assert off_distribution(found) == (["size"] if told else [])
    assert ("off distribution: size" in report(found)) == told


# ---------------------------------------------------------------------------------------------------- training
def trained_into(run: Path, dataset: CausalDataset, steps: int = 6, shift: int = 2, **more) -> Predictors:
    training = replace(DEFAULTS, steps=steps, device="cpu", precision="fp32", batch_size=32, ema=0.98)
    return train_predictors(dataset, DataOptions(), RunOptions(run, **more), training, TINY, shift=shift)


@pytest.mark.parametrize("wanted", [("upper", "lower", "colour"), ("colour",)])
def test_what_can_be_read_is_learnt(tmp_path, wanted, capsys):
    dataset = Boxes(wanted, lazy=len(wanted) == 1)
    trained_into(tmp_path, dataset, 150, shift=0)
    found = read_json(tmp_path / "predictors" / "test.json")
    assert capsys.readouterr().out.startswith("| attribute | metric | observational | decorrelated | no information |")
    for name, parts in found["attributes"].items():
        for world in ("observational", "decorrelated"):
            if name == "colour":
                assert parts[world]["accuracy"]["value"] > 0.97 > 0.6 > parts["baseline"]["accuracy"]["value"]
            else:
                assert parts[world]["mae"]["value"] < 0.15 * parts["baseline"]["mae"]["value"]


def test_saved_predictors_load_bit_for_bit_and_frozen(tmp_path):
    dataset = Boxes()
    trained, loaded = trained_into(tmp_path, dataset), load_predictors(tmp_path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    images = dataset.split("test").batch(slice(0, 20))["image"].requires_grad_()
    for name, value in trained.predict(images).items():
        assert torch.equal(value, loaded.predict(images)[name])
    assert torch.equal(trained.features(images), loaded.features(images))
    (gradient,) = torch.autograd.grad(loaded.features(images).sum(), images)
    assert gradient.abs().sum() > 0


def test_interrupted_and_resumed_is_uninterrupted(tmp_path, monkeypatch):
    dataset, forward, calls = Boxes(), Predictors.forward, []
    whole = trained_into(tmp_path / "a", dataset, 12)

    def interrupting(self, *arguments):
        calls.append(self.training)
        if sum(calls) == 5 and self.training:
            signal.raise_signal(signal.SIGINT)
        return forward(self, *arguments)

    monkeypatch.setattr(Predictors, "forward", interrupting)
    with pytest.raises(KeyboardInterrupt):
        trained_into(tmp_path / "b", dataset, 12)
    assert not (tmp_path / "b" / "predictors" / "test.json").exists()
    resumed = trained_into(tmp_path / "b", dataset, 12, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True))
    assert read_json(tmp_path / "a" / "predictors" / "test.json") == read_json(tmp_path / "b" / "predictors" / "test.json")
    with pytest.raises(RunError, match=naming("checkpoint.pt shift 2 0")):
        trained_into(tmp_path / "b", dataset, 12, shift=0, resume=True)


# ---------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def read_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with predictors."""
    run = tmp_path_factory.mktemp("predictors") / "run"
    shutil.copytree(tiny_run, run)
    arguments = [part for option in DIGITS for part in ("--option", option)]
    run_command(Options, main, ["--run", str(run), *arguments, *QUICK])
    return run


def test_the_command_trains_tests_and_says_how(read_run, tmp_path, capsys):
    arguments = [part for option in DIGITS for part in ("--option", option)]
    run_command(Options, main, ["--run", str(tmp_path), *arguments, *QUICK])
    printed = capsys.readouterr().out
    assert "| digit | macro f1 |" in printed and "| thickness | mae (px) |" in printed and "| intensity | mae |" in printed
    assert "32 test images as observed" in printed and "32 decorrelated" in printed
    assert "do(intensity, thickness) rendered by the true process" in printed
    found = read_json(tmp_path / "predictors" / "test.json")
    assert found == read_json(read_run / "predictors" / "test.json")  # the same seed, the same predictors
    assert report(found) in printed and found["correlation"]["observational"] > 0.8 > 0.6 > found["correlation"]["decorrelated"]
    assert load_predictors(tmp_path).names == ("digit", "intensity", "thickness")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--renderings", "0"], "--renderings 0 [1, 1000]"), (["--shift", "-1"], "--shift -1 [0, 1024]"),
    (["--width", "0"], "--width 0"), (["--steps", "0"], "--steps 0"),
    (["--option", "seed=5"], "seed=5 --run"), ([], "--resume --overwrite")])
def test_the_command_refuses(read_run, capsys, arguments, message):
    before = (read_run / "predictors" / "test.json").read_text()
    with pytest.raises(SystemExit) as stopped:
        data = [part for option in DIGITS for part in ("--option", option)]
        run_command(Options, main, ["--run", str(read_run), *data, *QUICK, *arguments])
    last = capsys.readouterr().err.splitlines()[-1]  # a slow machine shows progress bars before it
    assert stopped.value.code == 2 and says(last, message) and last.startswith("error: ")
    assert (read_run / "predictors" / "test.json").read_text() == before


def test_a_run_without_predictors_names_the_command(tiny_run, tmp_path):
    with pytest.raises(RunError, match=naming(f"mechanisms.predictors --run {tiny_run}")):
        load_predictors(tiny_run)
    with pytest.raises(RunError, match=naming("nowhere pgm.train --run")):
        load_predictors(tmp_path / "nowhere")


def damage_weights(path: Path) -> None:
    state = load(path)
    state["weights"]["summary.weight"][0, 0] = float("nan")
    save(path, state)


def damage_graph(path: Path) -> None:
    save(path, {**load(path), "graph": Boxes().graph.to_dict()})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(("damage", "message"), [
    (damage_weights, "summary.weight mechanisms.predictors"),
    (damage_graph, "colour digit image.parents predictors/mechanism.pt"),
    (truncate, "predictors/mechanism.pt"),
    (lambda path: save(path, {**load(path), "kind": "hvae"}), "'hvae' 'predictors'")])
def test_what_cannot_be_trusted_is_refused(read_run, tmp_path, damage, message):
    shutil.copytree(read_run, tmp_path / "run")
    damage(tmp_path / "run" / "predictors" / "mechanism.pt")
    with pytest.raises(RunError, match=naming(message)):
        load_predictors(tmp_path / "run")
