"""The merged model: its laws, what an intervention may be, and run folders that it refuses to merge."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from dscm import DSCM
from mechanisms.image.config import ImageConfig
from mechanisms.image.hvae import HVAE
from mechanisms.runs.files import RunError, load, save
from mechanisms.runs.folder import dataset_of, graph_of
from pgm import AttributeSCM, interventions

ROWS = 10
NAMES = ("thickness", "intensity", "digit")
DO = {"thickness": 3.5, "intensity": 100.0, "digit": 7}
CHANGED = {"thickness": {"intensity", "image"}, "intensity": {"image"}, "digit": {"image"}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def dscm(tiny_run) -> DSCM:
    return DSCM.load(tiny_run)


@pytest.fixture(scope="module")
def observed(tiny_run) -> dict[str, Tensor]:
    return dataset_of(tiny_run).split("test").batch(range(ROWS))


@pytest.fixture(autouse=True)
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(interventions, "_warned", set())


def whole_grey_levels(images: Tensor) -> Tensor:
    return (images * 255).round()


# ---------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("draws", [None, 1, 3])
def test_nothing_done_returns_the_observation(dscm, observed, draws):
    result = dscm.counterfactual(observed, {}, draws=draws, generator=generator())
    assert set(result) == {*NAMES, "image"} and len(result) == 4 and not result.beyond
    for name, value in result.items():
        assert torch.equal(value, observed[name]) and value.dtype == observed[name].dtype, name
    assert result.image.data_ptr() != observed["image"].data_ptr()
    if draws:
        assert all(torch.equal(draw, observed["image"]) for draw in result.draws)


@pytest.mark.parametrize("name", NAMES)
def test_only_descendants_change(dscm, observed, name):
    before = {key: value.clone() for key, value in observed.items()}
    result = dscm.counterfactual(observed, {name: DO[name]}, generator=generator())
    assert (result[name] == DO[name]).all() and result[name].dtype == observed[name].dtype
    for other in {*NAMES, "image"} - {name}:
        assert torch.equal(result[other], observed[other]) == (other not in CHANGED[name]), other
    assert all(torch.equal(value, observed[key]) for key, value in before.items())  # nothing in place


def test_image_stays_where_no_parent_changed(dscm, observed):
    digit = observed["digit"].clone()
    digit[::2] = (digit[::2] + 1) % 10
    for draws in (None, 3):
        image = dscm.counterfactual(observed, {"digit": digit}, draws, generator=generator()).image
        same = (image == observed["image"]).flatten(1).all(1)
        assert same[1::2].all() and not same[::2].any()


def test_image_without_intervention_on_it_is_explained_by_its_noise(dscm, observed):
    for draws in (None, 1, 3):
        noise = dscm.abduct(observed, generator(), draws)
        again = dscm.predict(noise)
        assert torch.equal(whole_grey_levels(again["image"]), whole_grey_levels(observed["image"]))
        assert torch.equal(again["digit"], observed["digit"])
        for name in ("thickness", "intensity"):
            torch.testing.assert_close(again[name], observed[name], rtol=1e-3, atol=1e-3)


def test_predict_of_abducted_noise_is_the_counterfactual(dscm, observed):
    do = {"digit": 3, "intensity": 150.0}
    direct = dscm.counterfactual(observed, do, generator=generator())
    stepwise = dscm.predict(dscm.abduct(observed, generator()), do)
    torch.testing.assert_close(direct.image, stepwise["image"], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("draws", [None, 3])
def test_one_abduction_serves_many_interventions(dscm, observed, draws, monkeypatch):
    passes, encode = [], type(dscm.image)._encode
    monkeypatch.setattr(type(dscm.image), "_encode", lambda self, x: passes.append(len(x)) or encode(self, x))
    noise = dscm.abduct(observed, generator(), draws)
    shared = [dscm.counterfactual(observed, {name: DO[name]}, noise=noise, generator=generator()) for name in NAMES]
    assert passes == [ROWS]  # one pass of the encoder, however many draws and interventions
    for name, answer in zip(NAMES, shared, strict=True):
        alone = dscm.counterfactual(observed, {name: DO[name]}, draws, generator=generator())
        assert torch.equal(answer[name], alone[name])
        if draws is None:
            torch.testing.assert_close(answer.image, alone.image, rtol=1e-4, atol=1e-4)
        else:
            assert answer.draws.shape == alone.draws.shape and torch.equal(answer.image, answer.draws.mean(0))


@pytest.mark.parametrize("draws", [None, 3])
def test_noise_in_batches_is_the_noise(dscm, observed, draws):
    """Row by row and draw by draw, whatever the batches: noise of other rows would give other images."""
    noise = dscm.abduct(observed, generator(), draws, batch_size=4)
    assert len(noise.image) == ROWS * (draws or 1)
    again = dscm.counterfactual(observed, {"thickness": observed["thickness"] + 1e-4}, noise=noise, batch_size=3)
    each = again.draws if draws else again.image[None]
    assert all((image - observed["image"]).abs().flatten(1).mean(1).max() < 2e-3 for image in each)


def test_noise_of_another_observation_is_refused(dscm, observed):
    noise = dscm.abduct({name: value[:4] for name, value in observed.items()}, draws=2)
    with pytest.raises(SchemaError, match="noise is that of 4 images and draws=2; asked are 10 images"):
        dscm.counterfactual(observed, {"thickness": 3.0}, noise=noise)
    with pytest.raises(SchemaError, match="draws=3"):
        dscm.counterfactual({name: value[:4] for name, value in observed.items()}, {"thickness": 3.0}, draws=3, noise=noise)


def test_regenerate_takes_no_short_cut(dscm, observed):
    assert torch.equal(whole_grey_levels(dscm.regenerate(observed)), whole_grey_levels(observed["image"]))
    explained = dscm.regenerate(observed, temperature=0.0, batch_size=3)
    torch.testing.assert_close(explained, dscm.predict(dscm.abduct(observed), temperature=0.0)["image"], rtol=1e-3, atol=2e-3)
    assert (explained - observed["image"]).abs().mean() > 1e-3


def test_effects_of_exogenous_latents(dscm, observed):
    total, direct, indirect = (dscm.counterfactual(observed, {"thickness": 3.5}, effect=effect).image
                               for effect in ("total", "direct", "indirect"))
    assert torch.equal(total, direct)
    assert torch.equal(whole_grey_levels(indirect), whole_grey_levels(observed["image"]))


@pytest.mark.parametrize("draws", [None, 4])
def test_batches_do_not_matter(dscm, observed, draws):
    whole = dscm.counterfactual(observed, {"thickness": 3.0}, draws, generator=generator())
    parts = dscm.counterfactual(observed, {"thickness": 3.0}, draws, generator=generator(), batch_size=3)
    if draws is None:  # draws take the stream of noise in another order
        torch.testing.assert_close(whole.image, parts.image, rtol=1e-4, atol=1e-4)
    assert whole.image.shape == parts.image.shape


def test_empty_batch(dscm, observed):
    none = {name: value[:0] for name, value in observed.items()}
    result = dscm.counterfactual(none, {"thickness": 3.0}, draws=2)
    assert result.image.shape == (0, *observed["image"].shape[1:]) and len(result["intensity"]) == 0


# ---------------------------------------------------------------------------------------------------- randomness
def test_draws(dscm, observed):
    result = dscm.counterfactual(observed, {"thickness": 3.5}, draws=5, generator=generator())
    assert result.draws.shape == (5, *observed["image"].shape) and torch.equal(result.image, result.draws.mean(0))
    assert result.spread.shape == observed["image"].shape
    assert (result.spread.flatten(1).amax(1) > 0).all()
    torch.testing.assert_close(result.spread, result.draws.std(0))
    assert (dscm.counterfactual(observed, {}, draws=3).spread < 1e-6).all()


def test_spread_needs_draws(dscm, observed):
    for draws in (None, 1):
        with pytest.raises(SchemaError, match="at least two draws"):
            dscm.counterfactual(observed, {"thickness": 3.5}, draws).spread  # noqa: B018
    with pytest.raises(SchemaError, match="draws=0 must be at least 1"):
        dscm.counterfactual(observed, {"thickness": 3.5}, draws=0)


def test_seeds_reproduce_and_global_state_is_untouched(dscm, observed):
    state = torch.get_rng_state()
    verbs = (lambda g: dscm.counterfactual(observed, {"thickness": 3.0}, draws=2, generator=g).draws,
             lambda g: dscm.sample(4, {"digit": 3}, generator=g)["image"],
             lambda g: dscm.log_prob(observed, g)["image"],
             lambda g: dscm.abduct(observed, g, draws=1).image.latents[0])
    for verb in verbs:
        first, second, third = verb(generator(1)), verb(generator(1)), verb(generator(2))
        assert torch.equal(first, second) and not torch.equal(first, third)
    assert torch.equal(state, torch.get_rng_state())


def test_sample_under_do(dscm):
    natural, done = dscm.sample(200, generator=generator()), dscm.sample(200, {"thickness": 3.5}, generator())
    assert natural["image"].shape == (200, *dscm.graph.image.shape) and set(natural) == {*NAMES, "image"}
    assert natural["image"].min() >= 0 and natural["image"].max() <= 1
    assert (done["thickness"] == 3.5).all() and torch.equal(done["digit"], natural["digit"])
    assert not torch.equal(done["intensity"], natural["intensity"]) and not torch.equal(done["image"], natural["image"])
    dscm.graph.check(done)


def test_log_prob_of_every_variable(dscm, observed):
    terms = dscm.log_prob(observed, generator())
    assert set(terms) == {*NAMES, "image"}
    assert all(term.shape == (ROWS,) and term.isfinite().all() and not term.requires_grad for term in terms.values())
    white = dscm.log_prob({**observed, "image": torch.ones_like(observed["image"])}, generator())
    assert (white["image"] < terms["image"]).all() and torch.equal(white["thickness"], terms["thickness"])


# ---------------------------------------------------------------------------------------------------- interventions
def test_forms_of_an_intervention_agree(dscm, observed):
    number = dscm.counterfactual(observed, {"thickness": 3.0})
    tensor = dscm.counterfactual(observed, {"thickness": torch.full((ROWS,), 3.0, dtype=torch.float64)})
    function = dscm.counterfactual(observed, {"thickness": lambda t: t * 0 + 3})
    constant = dscm.counterfactual(observed, {"thickness": lambda t: 3})
    for other in (tensor, function, constant):
        assert torch.equal(number.image, other.image) and torch.equal(number["intensity"], other["intensity"])
    shifted = dscm.counterfactual(observed, {"thickness": lambda t: t + 0.01})
    assert torch.equal(shifted["thickness"], observed["thickness"] + 0.01)


def test_beyond_training_is_flagged(dscm, observed):
    statistics = dscm.graph["thickness"].statistics
    values = torch.full((ROWS,), statistics.mean)
    values[:2] = statistics.maximum + 3
    with pytest.warns(UserWarning, match="thickness.*beyond the training range"):
        result = dscm.counterfactual(observed, {"thickness": values, "digit": 3})
    assert result.beyond["thickness"].tolist() == [True] * 2 + [False] * 8 and not result.beyond["digit"].any()
    assert result.image.isfinite().all()


@pytest.mark.parametrize("do, message", [
    ({"width": 3}, "names are .*thickness"), ({"image": 0.0}, "cannot intervene on 'image'"),
    ({"thickness": "thick"}, "not a number"), ({"thickness": math.nan}, "no support"), ({"thickness": torch.ones(3)}, "3 values for 10"),
    ({"thickness": lambda t: t[:3]}, "3 values for 10"), ({"intensity": 300}, "no support"), ({"digit": 12}, "10 classes"),
])
def test_impossible_interventions_are_refused(dscm, observed, do, message):
    with pytest.raises(SchemaError, match=message):
        dscm.counterfactual(observed, do)


@pytest.mark.parametrize("change, message", [
    ({"image": None}, "image"),
    ({"image": lambda x: x[:, :, :-1]}, r"expected float \(B, 1, 32, 32\) in \[0, 1\]"),
    ({"image": lambda x: (x * 255).byte()}, "torch.uint8"),
    ({"image": lambda x: x * 255}, r"values 0\.\.2\d\d; expected \[0, 1\]"),
    ({"image": lambda x: x * math.nan}, "nan..nan"),
    ({"image": lambda x: x[:3]}, "3 images but 10 values"),
    ({"thickness": lambda t: t[:3]}, "different length"),
    ({"thickness": lambda t: -t}, "no support"),
    ({"digit": None}, "missing digit"),
])
def test_impossible_observations_are_refused(dscm, observed, change, message):
    wrong = dict(observed)
    for name, action in change.items():
        value = wrong.pop(name)
        if action:
            wrong[name] = action(value)
    for verb in (lambda o: dscm.counterfactual(o, {}), dscm.abduct, dscm.log_prob):
        with pytest.raises(SchemaError, match=message):
            verb(wrong)


def test_observation_may_come_as_numpy(dscm, observed):
    arrays = {name: value.numpy().astype("float64") for name, value in observed.items()}
    do = {"thickness": 3.0}
    assert torch.equal(dscm.counterfactual(arrays, do).image, dscm.counterfactual(observed, do).image)


# ---------------------------------------------------------------------------------------------------- run folders
@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_loaded_twice_is_the_same(dscm, observed, tiny_run):
    again = DSCM.load(str(tiny_run))
    assert torch.equal(again.counterfactual(observed, {"thickness": 3.0}).image, dscm.counterfactual(observed, {"thickness": 3.0}).image)
    assert again.graph.fingerprint() == dataset_of(tiny_run).graph.fingerprint() and not again.image.training


def test_missing_folders(tmp_path):
    with pytest.raises(RunError, match=f"{tmp_path}/absent does not exist; .*python -m pgm.train --run {tmp_path}/absent"):
        DSCM.load(tmp_path / "absent")
    with pytest.raises(RunError, match="is not a run folder: it has no run.json"):
        DSCM.load(tmp_path)


@pytest.mark.parametrize("folder, command", [("pgm", "pgm.train"), ("image", "mechanisms.train")])
def test_missing_mechanism_names_its_command(copy, folder, command):
    shutil.rmtree(copy / folder)
    with pytest.raises(RunError, match=f"no {folder} mechanism yet; train it first: python -m {command} --run {copy}"):
        DSCM.load(copy)


@pytest.mark.parametrize("folder", ["pgm", "image"])
def test_damaged_mechanism_is_named(copy, folder):
    path = copy / folder / "mechanism.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=f"{path} is truncated"):
        DSCM.load(copy)


def test_swapped_mechanisms_are_refused(copy):
    (copy / "pgm" / "mechanism.pt").rename(copy / "kept.pt")
    shutil.copy(copy / "image" / "mechanism.pt", copy / "pgm" / "mechanism.pt")
    with pytest.raises(RunError, match="holds a 'hvae', not a 'attributes'"):
        DSCM.load(copy)
    shutil.copy(copy / "kept.pt", copy / "pgm" / "mechanism.pt")
    shutil.copy(copy / "kept.pt", copy / "image" / "mechanism.pt")
    with pytest.raises(ValueError, match="holds a 'attributes'; image mechanisms are vae, hvae"):
        DSCM.load(copy)


def test_other_statistics_are_refused(copy):
    path = copy / "pgm" / "mechanism.pt"
    state = load(path)
    for variable in state["graph"]["variables"]:
        if variable["name"] == "thickness":
            variable["statistics"]["mean"] += 0.1
    save(path, state)
    with pytest.raises(RunError, match="different graphs or training splits .*thickness.statistics"):
        DSCM.load(copy)


def test_mechanisms_of_other_graphs_are_refused(dscm):
    variables = [v for v in dscm.graph if v.name not in ("image", "digit")]
    other = Graph([*variables, Variable("image", "image", ("thickness", "intensity"), shape=(1, 32, 32))])
    with pytest.raises(RunError, match="digit is only in the first; image.parents: .*Train both on one data set"):
        DSCM(dscm.attributes, HVAE(other, ImageConfig(z_dim=2, widths="16:8,8:8,4:8,1:8")))
    with pytest.raises(RunError, match="digit is only in the second"):
        DSCM(AttributeSCM(other), dscm.image)


@pytest.mark.parametrize("folder", ["pgm", "image"])
def test_a_flipped_bit_of_a_mechanism_is_noticed(copy, folder):
    path = copy / folder / "mechanism.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4  # among the weights: all would load, and answer
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{path} is damaged.*Restore a copy of it"):
        DSCM.load(copy)


@pytest.mark.parametrize("folder, config", [
    ("pgm", {"bins": 10**9, "hidden": [32, 32]}), ("pgm", {"bins": 8}), ("pgm", {"bins": "8", "hidden": [32]}), ("pgm", None),
    ("image", {"z_dim": 10**9}), ("image", {"depth": 3}), ("image", {"widths": 8}), ("image", {"widths": "16:8"}), ("image", [])])
def test_weights_of_another_configuration_are_refused(copy, folder, config):
    path = copy / folder / "mechanism.pt"
    state = load(path)
    wrong = {**state["config"], **config} if folder == "image" and config else config
    save(path, {**state, "config": wrong})
    with pytest.raises(RunError, match=f"{path} is damaged or from another version"):
        DSCM.load(copy)


@pytest.mark.parametrize("content, named", [
    ("[]", "it holds a list"), ("{}", "it lacks dataset, options, graph"), ("[" * 50_000, "nested too deep"),
    ('{"dataset": 1, "options": {}, "graph": {}}', "dataset is a int"),
    ('{"dataset": "morphomnist", "options": {}, "graph": {"variables": [1]}}', ""),
    ('{"dataset": "morphomnist", "options": {}, "graph": {"nodes": []}}', "it lacks 'variables'")])
def test_a_damaged_run_record_is_refused(copy, content, named):
    (copy / "run.json").write_text(content)
    with pytest.raises(RunError, match=f"run.json is damaged or from another version: .*{named}.*remove it"):
        graph_of(copy)
