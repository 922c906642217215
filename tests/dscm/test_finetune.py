"""Counterfactual training: what its parts promise, that it resumes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets import SchemaError
from datasets.errors import UserError
from datasets.options import DataOptions
from dscm.evaluation.before_after import summary
from dscm.finetuning.config import FinetuneConfig
from dscm.finetuning.objective import TOLERANCE, CounterfactualTraining, Multiplier
from dscm.finetuning.options import DEFAULTS
from dscm.finetuning.run import RECORD, finetune
from dscm.metrics import Score
from dscm.runs import open_run
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.anticausal.model import load_predictors
from mechanisms.image.config import ImageConfig
from mechanisms.image.latent import LatentImageMechanism
from mechanisms.image.registry import build, image_mechanisms
from mechanisms.runs.files import MetricsLog, RunError, load, read_json, save
from mechanisms.training import loop as training
from mechanisms.training.config import RunOptions
from mechanisms.training.devices import make_accelerator, prepared
from mechanisms.training.noise import Noise
from tests.errors import naming

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
TINY = PredictorConfig(width=8, blocks=1, features=8)


@pytest.fixture(scope="module")
def source(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with tiny predictors. Read it; do not train into it."""
    from mechanisms.anticausal.fit import train_predictors
    from mechanisms.anticausal.options import DEFAULTS as PREDICTOR_TRAINING
    from mechanisms.runs.folder import dataset_of, recorded

    run = tmp_path_factory.mktemp("source") / "tiny"
    shutil.copytree(tiny_run, run)
    training = replace(PREDICTOR_TRAINING, steps=20, batch_size=32, device="cpu", precision="fp32")
    train_predictors(dataset_of(run), DataOptions(recorded(run)["dataset"]), RunOptions(run), training, TINY, renderings=1, shift=0)
    return run


@pytest.fixture
def module(source: Path) -> CounterfactualTraining:
    return make(source)


def make(source: Path, **config) -> CounterfactualTraining:
    dscm, _ = open_run(source, "cpu")
    return CounterfactualTraining(dscm.image, dscm.attributes, load_predictors(source), FinetuneConfig(**config))


@pytest.fixture
def batch(source: Path) -> dict[str, Tensor]:
    return open_run(source, "cpu")[1].split("train").batch(slice(0, 24))


def options(source: Path, into: Path, steps: int = STEPS, **changes) -> dict[str, object]:
    run = RunOptions(source, **{name: changes.pop(name) for name in ("resume", "overwrite") if name in changes})
    config = FinetuneConfig(**{name: changes.pop(name) for name in ("variables", "slack") if name in changes})
    count = changes.pop("count", 8)
    few = {"steps": steps, "batch_size": 16, "validations": 3, "device": "cpu", "precision": "fp32"}
    return {"run": run, "into": into, "training": replace(DEFAULTS, **{**few, **changes}), "config": config, "count": count}


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---------------------------------------------------------------------------------------------------- the multiplier
def test_multiplier_solves_a_problem_with_a_known_answer():
    """min x² subject to 1 − x ≤ 0: x = 1, and by the Lagrangian's gradient 2x − λ = 0, so λ = 2."""
    x, multiplier = torch.zeros(()), Multiplier(rate=0.05, damping=1.0)
    for _ in range(3000):
        gradient = 2 * x - multiplier.weight()
        x = x - 0.02 * gradient
        multiplier.ascend(1 - x)
    assert x.item() == pytest.approx(1, abs=1e-3) and multiplier.value.item() == pytest.approx(2, abs=1e-2)


def test_multiplier_vanishes_where_the_constraint_does_not_bind():
    """min x² subject to −1 − x ≤ 0: x = 0 whatever the constraint, which must not pull x towards its edge."""
    x, multiplier = torch.tensor(0.5), Multiplier(rate=0.05, damping=10.0)
    for _ in range(500):
        x = x - 0.02 * (2 * x - multiplier.weight())
        multiplier.ascend(-1 - x)
        assert multiplier.value == 0 and multiplier.weight() == 0
    assert x.item() == pytest.approx(0, abs=1e-6)


def test_multiplier_rises_while_violated_and_falls_otherwise():
    multiplier, seen = Multiplier(rate=0.1, damping=2.0), []
    for violation in [1.0] * 50 + [-1.0] * 200:
        multiplier.ascend(torch.tensor(violation))
        seen.append(multiplier.value.item())
    assert seen[:50] == sorted(seen[:50]) and seen[0] > 0 and min(seen) >= 0
    assert all(a >= b for a, b in zip(seen[100:], seen[101:], strict=False)) and seen[-1] == 0 < seen[100]
    held = multiplier.state_dict()
    multiplier.ascend(torch.tensor(float("nan")))
    assert all(torch.equal(held[name], value) for name, value in multiplier.state_dict().items())


# ---------------------------------------------------------------------------------------------------- one batch
LATENT = [name for name, kind in image_mechanisms().items() if issubclass(kind, LatentImageMechanism)]
KINDS = [(name, prior, likelihood) for name in LATENT for prior in ("exogenous", "mediator")
         for likelihood in ("gaussian", "logistic-mixture")]


@pytest.fixture
def fresh(source: Path, request: pytest.FixtureRequest) -> CounterfactualTraining:
    """An untrained image mechanism of one kind, ready for counterfactual training."""
    name, prior, likelihood = request.param
    torch.manual_seed(0)
    dscm, _ = open_run(source, "cpu")
    config = ImageConfig(z_dim=2, embedding=8, widths="16:8,8:8,4:8,1:8", prior=prior, likelihood=likelihood)
    return CounterfactualTraining(build(name, dscm.graph, config), dscm.attributes, load_predictors(source))


@pytest.mark.parametrize("fresh", KINDS, indirect=True, ids="-".join)
def test_inference_is_the_free_energy_s_and_the_noise_s(fresh, batch):
    """One pass gives what the mechanism's own two give with the same draws, bit for bit."""
    image = fresh.image
    with torch.no_grad():
        energy, noise = image.bound_and_noise(batch, Noise(3))
        assert torch.equal(energy, image(batch, Noise(3))["free_energy"])
        alone = image.abduct(batch["image"], batch, Noise(3))
        assert torch.equal(noise.residual, alone.residual) and torch.equal(noise.factual.parents, alone.factual.parents)
        for left, right in ((noise.latents, alone.latents), (noise.factual.values, alone.factual.values)):
            assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("fresh", KINDS, indirect=True, ids="-".join)
def test_gradients_reach_the_image_mechanism_and_nothing_else(fresh, batch):
    frozen = [p for other in fresh._frozen for p in other.parameters()]
    assert {id(p) for p in fresh.parameters()} == {id(p) for p in fresh.image.parameters()}
    fresh.train()
    assert fresh.image.training and not any(other.training for other in fresh._frozen)
    with torch.no_grad():  # what starts at zero passes nothing on at first
        for parameter in fresh.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    terms = fresh(batch, Noise(0))
    assert all(term.shape == (24,) and term.isfinite().all() for term in terms.values())
    terms["counterfactual"].mean().backward()
    unmoved = {name for name, p in fresh.image.named_parameters() if p.grad is None or not p.grad.any()}
    assert unmoved <= {"readout.log_scale.bias"}  # σ*/σ scales the residual, and a factor of both cancels
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert set(fresh.state_dict()) == {f"image.{name}" for name in fresh.image.state_dict()} | {
        "multiplier.value", "multiplier.violation", "bounds"}


def test_frozen_parts_go_where_the_module_goes(module):
    module.to(torch.float64)
    assert {p.dtype for other in module._frozen for p in other.parameters()} == {torch.float64}


def test_descent_lowers_what_it_minimises(source, batch):
    module = make(source)
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    losses = []
    for _ in range(12):
        loss = module(batch, Noise(0))["counterfactual"].mean()  # the same draws, the same intervention
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_one_parent_is_permuted_and_the_rest_follows(module, batch):
    attributes, noise, seen = module._frozen[0], Noise(1), set()
    for _ in range(20):
        changed = module.intervene(batch, noise)
        moved = {name for name in attributes.names if not torch.equal(changed[name], batch[name])}
        names = moved - {"intensity"} or moved  # intensity is set, or follows thickness
        assert len(names) == 1
        name = names.pop()
        seen.add(name)
        assert torch.equal(changed[name].sort().values, batch[name].sort().values)
        expected = attributes.counterfactual(batch, {name: changed[name]})
        assert all(torch.equal(changed[other], expected[other]) for other in attributes.names)
    assert seen == {"thickness", "intensity", "digit"}


def test_variables_restrict_the_interventions(source, batch):
    module, noise = make(source, variables="digit"), Noise(1)
    for _ in range(5):
        changed = module.intervene(batch, noise)
        assert torch.equal(changed["thickness"], batch["thickness"]) and not torch.equal(changed["digit"], batch["digit"])


def test_intervention_comes_from_the_stream_that_is_checkpointed(module, batch):
    first, second = (module.intervene(batch, Noise(5)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------- the constraint
def test_the_bound_is_the_model_s_own_free_energy(source):
    module, dataset = make(source, slack=0.25), open_run(source, "cpu")[1]
    config = options(source, Path("unused"))["training"]
    means = module.measure(dataset.split("train"), dataset.split("valid"), config)
    own = []
    for split in ("train", "valid"):
        rows, noise, energies = dataset.split(split), Noise(config.seed + 1), []
        for start in range(0, len(rows), config.batch_size):
            batch = rows.batch(slice(start, start + config.batch_size))
            with torch.no_grad():
                model = module.image if split == "train" else module.eval()
                energies.append(model(batch, noise)["free_energy"])
        own.append(torch.cat(energies).mean().item() / 32**2 + 0.25)
    assert module.bounds.tolist() == pytest.approx(own, rel=1e-6)
    assert module.criterion(means) == means["counterfactual"]
    over = {**means, "free_energy": means["free_energy"] + 32**2 * (0.25 + 2 * TOLERANCE)}
    worse = {**means, "free_energy": means["free_energy"] + 32**2 * (0.25 + 4 * TOLERANCE), "counterfactual": -100.0}
    assert means["counterfactual"] < module.criterion(over) < module.criterion(worse)


def test_the_bound_of_training_is_the_constraint_s(module, batch):
    """Free energies above the bound raise the multiplier, below it do not; validation leaves it alone."""
    module.bounds.fill_(100.0)
    module.train()(batch, Noise(0))
    assert module.multiplier.value == 0 and module.multiplier.violation < 0
    module.bounds.fill_(-100.0)
    for _ in range(3):
        module(batch, Noise(0))
    value = module.multiplier.value.item()
    assert value > 0
    module.eval()(batch, Noise(0))
    assert module.multiplier.value == value


def test_the_weight_is_the_multiplier_and_the_damping(module, batch):
    module.multiplier.value.fill_(3.0)
    module.multiplier.violation.fill_(0.02)
    terms = module.eval()(batch, Noise(0))
    expected = terms["counterfactual"] + (3.0 + 100.0 * 0.02) * (terms["free_energy"] / 32**2 - module.bounds[0])
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["weight"].tolist() == pytest.approx([5.0] * 24)


# ---------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an uninterrupted fine-tuning, which has left its source as it was."""
    into, before = tmp_path_factory.mktemp("runs") / "result", digests(source)
    finetune(**options(source, into))
    assert digests(source) == before
    return into


def test_the_result_is_a_run_like_any_other(source, trained, batch):
    dscm, dataset = open_run(trained, "cpu")
    load_predictors(trained)
    answer = dscm.counterfactual(batch, {"thickness": 3.0})
    other = open_run(source, "cpu")[0].counterfactual(batch, {"thickness": 3.0})
    assert torch.equal(answer["intensity"], other["intensity"]) and not torch.equal(answer["image"], other["image"])
    assert {name: digest for name, digest in digests(trained).items() if name.startswith(("pgm", "predictors", "run.json"))} == {
        name: digest for name, digest in digests(source).items() if name.startswith(("pgm", "predictors", "run.json"))}


def test_the_result_says_where_it_comes_from(source, trained):
    record, config = read_json(trained / RECORD), read_json(trained / "image" / "config.json")
    digest = hashlib.sha256((source / "image" / "mechanism.pt").read_bytes()).hexdigest()[:16]
    assert config["finetuned"]["image"] == record["origin"]["image"] == digest and config["finetuned"]["damping"] == 100.0
    assert record["run"] == str(source.resolve()) and record["questions"]["split"] == "valid" and record["questions"]["count"] == 8
    found = {(s["metric"], s["intervention"]) for s in record["after"]}
    asked = {("truth_l1", "do(thickness)"), ("effectiveness_predicted", "do(intensity)"), ("composition_l1", ""), ("free_energy", "")}
    assert asked <= found
    assert len(record["before"]) == len(record["after"]) and record["before"] != record["after"]
    rows = MetricsLog.read(trained / "image" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12] and {"counterfactual", "free_energy", "weight"} <= rows[-1]["valid"].keys()
    state = load(trained / "image" / "checkpoint.pt")["model"]
    assert not any(name.startswith(("attributes", "predictors")) for name in state) and state["bounds"].min() > 0


@pytest.fixture(scope="module")
def trained16(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like :func:`trained`, in bfloat16."""
    into = tmp_path_factory.mktemp("finetuned16") / "result"
    finetune(**options(source, into, precision="bf16"))
    return into


def test_training_is_in_the_precision_that_was_asked_for(source, trained, trained16):
    """What is measured before training is prepared too; training must not then go without its autocast."""
    one, two = (load(folder / "image" / "checkpoint.pt")["model"] for folder in (trained, trained16))
    assert not all(torch.equal(one[name], two[name]) for name in one)
    dtypes = []

    class Seeing(CounterfactualTraining):
        def forward(self, batch, noise, progress=1.0):
            dtypes.append(torch.is_autocast_enabled("cpu"))
            return super().forward(batch, noise, progress)

    dscm, dataset = open_run(source, "cpu")
    module = Seeing(dscm.image, dscm.attributes, load_predictors(source))
    config = options(source, Path(), precision="bf16")["training"]
    accelerator = make_accelerator("cpu", "bf16")
    module.measure(dataset.split("train"), dataset.split("valid"), config)
    batch = dataset.split("train").batch(slice(0, 4))
    with prepared(accelerator, module) as (wrapped,):
        wrapped(batch, Noise(0))
    assert len(dtypes) >= 2 and all(dtypes)
    assert not {"forward", "_is_accelerate_prepared"} & (vars(module).keys() | vars(module.image).keys())
    module(batch, Noise(0))
    assert dtypes[-1] is False


@pytest.mark.parametrize("precision, stop", [("fp32", 6), ("bf16", 6), ("bf16", 1)])
def test_interrupted_and_resumed_is_uninterrupted(source, tmp_path, monkeypatch, capsys, request, precision, stop):
    trained = request.getfixturevalue("trained" if precision == "fp32" else "trained16")
    agree, calls = training.agree, []

    def interrupt(values, world, device):
        calls.append(values)
        progress, _, overdue = agree(values, world, device)
        return progress, len(calls) > stop, overdue

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "agree", interrupt)
        finetune(**options(source, tmp_path / "result", precision=precision))
    assert load(tmp_path / "result" / "image" / "checkpoint.pt")["position"]["step"] == stop
    assert read_json(tmp_path / "result" / RECORD)["after"] is None
    finetune(**options(source, tmp_path / "result", resume=True, precision=precision))
    for name in ("mechanism.pt", "checkpoint.pt"):
        left, right = (load(folder / "image" / name) for folder in (tmp_path / "result", trained))
        left, right = ((s["weights"] if "weights" in s else s["model"]) for s in (left, right))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert read_json(tmp_path / "result" / RECORD) == read_json(trained / RECORD)
    assert "before | after" in " ".join(capsys.readouterr().out.split())


def test_two_processes_train_as_one_does(source, trained, tmp_path):
    script = tmp_path / "both.py"
    script.write_text(textwrap.dedent(f"""
        from pathlib import Path
        import torch
        from tests.dscm.test_finetune import finetune, options
        finetune(**options(Path({str(source)!r}), Path({str(tmp_path / "result")!r})))
        torch.distributed.destroy_process_group()
    """))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    one, two = (load(folder / "image" / "checkpoint.pt")["model"] for folder in (trained, tmp_path / "result"))
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    for row, other in zip(*(MetricsLog.read(f / "image" / "metrics.jsonl") for f in (tmp_path / "result", trained)), strict=True):
        assert row["valid"] == pytest.approx(other["valid"], rel=5e-3, abs=5e-3)


# ---------------------------------------------------------------------------------------------------- refusals
def test_existing_results_need_a_word(source, trained, tmp_path):
    kept = digests(trained)
    with pytest.raises(RunError, match=naming(trained, "--resume --overwrite")):
        finetune(**options(source, trained))
    with pytest.raises(RunError, match=naming(source)):
        finetune(**options(source, source))
    other = tmp_path / "other"
    shutil.copytree(source, other)
    with pytest.raises(RunError, match=naming(other, "--into")):
        finetune(**options(source, other, overwrite=True))
    state = torch.load(other / "image" / "mechanism.pt", weights_only=True)
    save(other / "image" / "mechanism.pt", {**state, "step": 1})
    with pytest.raises(RunError, match=naming(other, "image")):
        finetune(**options(other, trained, resume=True))
    with pytest.raises(RunError, match=naming("slack 0.0 → 0.5 --into")):
        finetune(**options(source, trained, resume=True, slack=0.5))
    with pytest.raises(RunError, match=naming("count 8 → 9")):
        finetune(**options(source, trained, resume=True, count=9))
    with pytest.raises(RunError, match=naming("learning_rate 0.0001 → 0.5")):
        finetune(**options(source, trained, resume=True, learning_rate=0.5))
    assert digests(trained) == kept


def test_a_run_without_predictors(tiny_run, tmp_path):
    with pytest.raises(RunError, match=naming(tiny_run, "mechanisms.predictors --run")):
        finetune(**options(tiny_run, tmp_path / "result"))
    assert not (tmp_path / "result").exists()


def test_predictors_of_another_graph(source, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(source, run)
    state = torch.load(run / "predictors" / "mechanism.pt", weights_only=True)
    next(v for v in state["graph"]["variables"] if v["name"] == "thickness")["statistics"]["mean"] += 1
    save(run / "predictors" / "mechanism.pt", state)
    with pytest.raises(RunError, match=naming(run / "predictors" / "mechanism.pt", "thickness.statistics")):
        finetune(**options(run, tmp_path / "result"))


@pytest.mark.parametrize("changes, message", [
    ({"variables": "thickness,hair"}, "'hair' digit intensity thickness"),
    ({"slack": -0.1}, "--slack -0.1"),
    ({"slack": float("nan")}, "--slack nan"),
    ({"count": 1}, "count=1"),
    ({"count": 10_000}, "count=10000 morphomnist 32"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"patience": 0}, "--patience 0 1"),
])
def test_what_makes_no_sense(source, tmp_path, changes, message):
    with pytest.raises(UserError, match=naming(message)):
        finetune(**options(source, tmp_path / "result", **changes))
    assert not (tmp_path / "result").exists()


def test_an_image_without_causes(module):
    from datasets.schema import Graph, Variable
    from dscm.finetuning.objective import chosen

    with pytest.raises(SchemaError, match=naming("image")):
        chosen(FinetuneConfig(), Graph([Variable("age", "real"), Variable("image", "image", shape=(1, 8, 8))]))


# ---------------------------------------------------------------------------------------------------- before and after
def scores(l1: float, error: float | None, free: float) -> list[dict]:
    return [Score("truth_l1", l1, error, 9, "grey levels", intervention="do(a)").to_dict(), Score("free_energy", free, 0.1, 9).to_dict()]


def test_a_worse_error_to_the_truth_is_said_aloud():
    text, worse = summary(scores(1.0, 0.3, 2.0), scores(2.0, 0.4, 1.0))
    assert worse == ["the error to the TRUE image under do(a) is WORSE: 1.000 before, 2.000 after (+1.000 grey levels, "
                     "2.0 standard errors)"]
    assert f"WARNING: {worse[0]}" in text and "| 1 ± 0.3 | 2 ± 0.4 | +1 " in " ".join(text.split())
    text, worse = summary(scores(2.0, 0.3, 1.0), scores(1.0, 0.4, 2.0))
    assert not worse and "has grown under no intervention" in text and "WARNING" not in text
    assert "standard errors)" not in summary(scores(1.0, None, 2.0), scores(2.0, 0.4, 1.0))[1][0]


def test_without_truth_the_report_says_so():
    text, worse = summary(scores(1.0, 0.3, 2.0)[1:], scores(1.0, 0.3, 1.0)[1:])
    assert not worse and "the true images are not known" in text
