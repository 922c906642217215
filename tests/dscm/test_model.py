"""The merged model: its laws, what an intervention may be, and run folders that it refuses to merge."""

from __future__ import annotations

import math
import re
import shutil
from copy import deepcopy as copy_of
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from datasets.errors import UserError
from dscm import DSCM
from dscm.metrics.coverage import Ensemble
from mechanisms.image.config import ImageConfig
from mechanisms.image.hvae import HVAE
from mechanisms.runs.files import RunError, load, save
from mechanisms.runs.folder import dataset_of, graph_of
from pgm import AttributeSCM, interventions
from tests.errors import naming

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
    with pytest.raises(SchemaError, match=naming("4 draws=2 10")):
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
        with pytest.raises(SchemaError, match=naming("draws=K")):
            dscm.counterfactual(observed, {"thickness": 3.5}, draws).spread  # noqa: B018
    with pytest.raises(SchemaError, match=naming("draws=0 1")):
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
    with pytest.warns(UserWarning, match=naming("do(thickness)")):
        result = dscm.counterfactual(observed, {"thickness": values, "digit": 3})
    assert result.beyond["thickness"].tolist() == [True] * 2 + [False] * 8 and not result.beyond["digit"].any()
    assert result.image.isfinite().all()


@pytest.mark.parametrize("do, message", [
    ({"width": 3}, "'width' thickness digit intensity"), ({"image": 0.0}, "'image'"),
    ({"thickness": "thick"}, "thickness='thick'"), ({"thickness": math.nan}, "thickness=nan"),
    ({"thickness": torch.ones(3)}, "thickness 3 10"),
    ({"thickness": lambda t: t[:3]}, "do(thickness) 3 10"), ({"intensity": 300}, "intensity=300 [64, 255]"), ({"digit": 12}, "digit=12 10"),
])
def test_impossible_interventions_are_refused(dscm, observed, do, message):
    with pytest.raises(SchemaError, match=naming(message)):
        dscm.counterfactual(observed, do)


@pytest.mark.parametrize("change, message", [
    ({"image": None}, "'image'"),
    ({"image": lambda x: x[:, :, :-1]}, "(B, 1, 32, 32) [0, 1]"),
    ({"image": lambda x: (x * 255).byte()}, "torch.uint8"),
    ({"image": lambda x: x * 255}, "image [0, 1]"),
    ({"image": lambda x: x * math.nan}, "nan..nan"),
    ({"image": lambda x: x[:3]}, "3 10 'thickness'"),
    ({"thickness": lambda t: t[:3]}, "'thickness' 3 'digit' 10"),
    ({"thickness": lambda t: -t}, "thickness=- 0"),
    ({"digit": None}, "digit"),
])
def test_impossible_observations_are_refused(dscm, observed, change, message):
    wrong = dict(observed)
    for name, action in change.items():
        value = wrong.pop(name)
        if action:
            wrong[name] = action(value)
    for verb in (lambda o: dscm.counterfactual(o, {}), dscm.abduct, dscm.log_prob):
        with pytest.raises(SchemaError, match=naming(message)):
            verb(wrong)


def test_observation_may_come_as_numpy(dscm, observed):
    arrays = {name: value.numpy().astype("float64") for name, value in observed.items()}
    do = {"thickness": 3.0}
    assert torch.equal(dscm.counterfactual(arrays, do).image, dscm.counterfactual(observed, do).image)


# ---------------------------------------------------------------------------------------------------- draws of attributes
SLOPE, DRAWS = 1.2, 4000


@pytest.fixture(scope="module")
def clinic() -> DSCM:
    """age → finding → image and age → image; the log odds of the finding are 1.2·age, so that what would have been is known."""
    torch.manual_seed(0)
    rows = {"age": torch.randn(64), "finding": torch.arange(64) % 2}
    rows["age"] = (rows["age"] - rows["age"].mean()) / rows["age"].std()
    graph = Graph([Variable("age", "real"), Variable("finding", "binary", ("age",)), Variable("weight", "real", ("finding",)),
                   Variable("sex", "binary"), Variable("image", "image", ("age", "finding"), shape=(1, 4, 4))])
    graph = graph.fitted({**rows, "weight": torch.randn(64), "sex": rows["finding"].flip(0)})
    attributes = AttributeSCM(graph)
    with torch.no_grad():
        network = attributes.mechanism("finding").conditioner
        for parameter in network.parameters():
            parameter.zero_()
        network.skip.weight[1] = SLOPE
        for name in ("weight", "age"):
            for parameter in attributes.mechanism(name).parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return DSCM(attributes, HVAE(graph, ImageConfig(z_dim=2, embedding=8, patch=1, widths="4:8,2:8,1:8")))


@pytest.fixture(scope="module")
def patients() -> dict[str, Tensor]:
    return {"age": torch.tensor([-1.0, -1.0, 0.5, 0.5]), "finding": torch.tensor([0, 1, 0, 1]), "sex": torch.tensor([0, 1, 1, 0]),
            "weight": torch.tensor([0.1, 0.2, 0.3, 0.4]), "image": torch.rand(4, 1, 4, 4, generator=generator())}


@pytest.mark.parametrize("reused", [False, True], ids=["afresh", "one-abduction"])
@pytest.mark.parametrize("age", [-1.5, 0.7])
def test_draws_have_the_counterfactual_probability(clinic, patients, reused, age):
    """Gumbel-max with two classes, p and q the probabilities of class 1 before and after: P(1 | 1) = min(p, q)/p and
    P(1 | 0) = max(0, q − p)/(1 − p)."""
    noise = clinic.abduct(patients, generator(), DRAWS) if reused else None
    answer = clinic.counterfactual(patients, {"age": age}, None if reused else DRAWS, generator=generator(), noise=noise)
    p, q = torch.sigmoid(SLOPE * patients["age"].double()), torch.sigmoid(torch.tensor(SLOPE * age, dtype=torch.float64))
    exact = torch.where(patients["finding"] == 1, torch.minimum(p, q) / p, (q - p).clamp(min=0) / (1 - p))
    drawn = answer.attribute_draws["finding"]
    assert drawn.shape == (DRAWS, 4) and drawn.dtype == torch.long
    error = (exact * (1 - exact) / DRAWS).sqrt()
    assert (((drawn.double().mean(0) - exact).abs()) <= 4 * error + 1e-9).all() and (error > 0).sum() >= 2
    assert torch.equal(answer["finding"], (drawn.double().mean(0) > 0.5).long())  # what most draws have
    torch.testing.assert_close(answer.attribute_spread["finding"], torch.minimum(drawn.float().mean(0), 1 - drawn.float().mean(0)))


def test_draws_are_of_one_world_each(clinic, patients):
    """Only descendants change, every image shows the attributes of its draw, and figures of calibration take either."""
    answer = clinic.counterfactual(patients, {"age": 0.7}, 50, generator=generator())
    drawn = answer.attribute_draws
    assert {name: value.shape for name, value in drawn.items()} == dict.fromkeys(("age", "finding", "sex", "weight"), (50, 4))
    assert (drawn["age"] == 0.7).all() and all(torch.equal(row, patients["sex"]) for row in drawn["sex"])
    assert torch.equal(answer["sex"], patients["sex"]) and torch.equal(answer["age"], torch.full((4,), 0.7))
    torch.testing.assert_close(answer["weight"], drawn["weight"].mean(0))
    torch.testing.assert_close(answer.attribute_spread["weight"], drawn["weight"].std(0))
    fixed = clinic.abduct(patients, generator(), 50)
    worlds = clinic.predict(fixed, {"age": 0.7})
    again = clinic.counterfactual(patients, {"age": 0.7}, noise=fixed)
    for name in drawn:
        torch.testing.assert_close(worlds[name], again[name])
    torch.testing.assert_close(worlds["image"], again.image, atol=1e-5, rtol=1e-5)
    switched = clinic.counterfactual(patients, {"finding": again.attribute_draws["finding"][7], "age": 0.7}, noise=fixed)
    torch.testing.assert_close(switched.draws[7], again.draws[7])
    told = Ensemble(drawn["weight"])
    assert told.crps(patients["weight"]).shape == (4,) and set(told.coverage(patients["weight"]).unique().tolist()) <= {0.0, 1.0}


def test_draws_whose_parents_stay_are_the_observation(clinic, patients):
    """Draw by draw: where the finding would not have changed, neither would its image."""
    answer = clinic.counterfactual(patients, {"finding": patients["finding"]}, 3)
    assert all(torch.equal(draw, patients["image"]) for draw in answer.draws)
    alone = DSCM(clinic.attributes, clinic.image)
    graph = alone.graph
    assert graph.image.parents == ("age", "finding")
    same = {**patients, "age": torch.full((4,), 0.5)}
    mixed = alone.counterfactual(same, {"age": torch.tensor([0.5, 0.5, 0.5, 2.0])}, 40, generator=generator(), temperature=0.0)
    for draw in mixed.draws:
        assert torch.equal(draw[:3], same["image"][:3]) and not torch.equal(draw[3], same["image"][3])


def test_observed_class_is_always_reproduced(clinic, patients):
    for draws in (None, 500):
        noise = clinic.abduct(patients, generator(3), draws)
        world = clinic.attributes.predict(noise.attributes)
        assert all(torch.equal(row, patients["finding"]) for row in world["finding"].view(-1, 4))
        assert torch.equal(clinic.counterfactual(patients, {}, noise=noise)["finding"], patients["finding"])


def test_same_call_gives_the_same_answer(clinic, patients):
    """Without a generator, too, whatever torch's global stream, which is left alone; another seed gives another answer."""
    many = {name: value.repeat_interleave(20, 0) for name, value in patients.items()}
    calls = (lambda g: clinic.counterfactual(patients, {"age": 0.2}, 20, generator=g).attribute_draws["finding"],
             lambda g: clinic.attributes.counterfactual(many, {"age": 0.2}, g)["finding"],
             lambda g: clinic.abduct(patients, g).attributes["finding"], lambda g: clinic.attributes.abduct(patients, g)["finding"],
             lambda g: clinic.sample(30, generator=g)["finding"], lambda g: clinic.attributes.sample(30, generator=g)["weight"],
             lambda g: clinic.log_prob(patients, g)["image"], lambda g: clinic.regenerate(patients, 0.5, g))
    for call in calls:
        torch.manual_seed(1)
        first, state = call(None), torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(first, call(None))
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())
        if call is not calls[-1]:  # the latents' mean, and no discrete attribute that an image of its own world could show
            assert not torch.equal(first, call(generator(5)))
    names = clinic.attributes.sample(40)
    assert not torch.equal(names["finding"], names["sex"])  # one stream for all, not the same one for each


def test_everything_is_checked_and_resolved_once(clinic, patients, monkeypatch):
    counted = dict.fromkeys(("checked", "resolved"), 0)

    def counting(name, function):
        def call(*arguments, **given):
            counted[name] += 1
            return function(*arguments, **given)
        return call

    monkeypatch.setattr(Graph, "check", counting("checked", Graph.check))
    for module in ("dscm.model", "pgm.scm"):
        monkeypatch.setattr(f"{module}.resolve_do", counting("resolved", interventions.resolve_do))
    called = []
    clinic.counterfactual(patients, {"age": lambda age: called.append(1) or age + 1}, 4)
    assert counted == {"checked": 1, "resolved": 1} and called == [1]


# ---------------------------------------------------------------------------------------------------- what else may be given
def test_functions_and_values_of_an_intervention_stay_the_callers(clinic, patients):
    before = {name: value.clone() for name, value in patients.items()}
    for draws in (None, 3):
        answer = clinic.counterfactual(patients, {"age": lambda age: age.add_(1), "finding": lambda f: f.fill_(1)}, draws)
        assert torch.equal(answer["age"], before["age"] + 1) and answer["finding"].all()
        assert all(torch.equal(value, before[name]) for name, value in patients.items())
    assert torch.equal(clinic.attributes.counterfactual(patients, {"age": lambda age: age.mul_(2)})["age"], 2 * before["age"])
    assert torch.equal(patients["age"], before["age"])
    values = torch.full((4,), 0.3)
    clinic.counterfactual(patients, {"age": values})["age"].zero_()
    assert (values == 0.3).all()
    world = clinic.predict(noise := clinic.abduct(patients), {"age": lambda age: age.zero_()})
    assert (world["age"] == 0).all() and torch.equal(clinic.predict(noise, {})["age"], clinic.predict(noise)["age"])


def fails(age):
    return age / [][3]


@pytest.mark.parametrize("do, named", [
    (None, "do=None"), ("age=3", "parse_do"), ([("age", 3.0)], "[('age', 3.0)] list"), (3, "do=3"), ({3: 1.0}, "3 age"),
    ({"age": lambda age, sex: age}, "do(age) TypeError"), ({"age": fails}, "do(age) IndexError"),
    ({"age": lambda age: None}, "age=None"), ({"age": lambda age: "old"}, "age='old'"), ({"age": lambda: 3}, "do(age) TypeError"),
    ({"sex": lambda sex: 1 / 0}, "do(sex) ZeroDivisionError"),
    ({"age": lambda age: age[:2]}, "2 4"), ({"age": {}}, "age={}"),
])
def test_what_is_no_intervention_is_refused(clinic, patients, do, named):
    noise = clinic.abduct(patients)
    verbs = [lambda: clinic.counterfactual(patients, do), lambda: clinic.attributes.counterfactual(patients, do)]
    if do is not None:  # there it means: nothing
        verbs += [lambda: clinic.predict(noise, do), lambda: clinic.attributes.predict(noise.attributes, do), lambda: clinic.sample(4, do)]
    for verb in verbs:
        with pytest.raises(SchemaError, match=naming(named)) as caught:
            verb()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given, named", [
    ({"draws": 2.5}, "draws=2.5"), ({"draws": "3"}, "draws='3'"), ({"draws": True}, "draws=True"), ({"draws": -1}, "draws=-1"),
    ({"draws": math.nan}, "draws=nan"), ({"temperature": "1"}, "temperature='1'"), ({"temperature": math.nan}, "temperature=nan"),
    ({"temperature": -0.5}, "temperature=-0.5"), ({"temperature": math.inf}, "temperature=inf"),
    ({"temperature": None}, "temperature=None"),
    ({"batch_size": 0}, "batch_size=0"), ({"batch_size": 2.0}, "batch_size=2.0"), ({"generator": 3}, "generator=3 manual_seed"),
])
def test_numbers_that_make_no_sense_are_named(clinic, patients, given, named):
    (name,) = given
    verbs = [lambda **g: clinic.counterfactual(patients, {}, **g)]
    verbs += [lambda **g: clinic.abduct(patients, **g)] if name != "temperature" else []
    verbs += [lambda **g: clinic.regenerate(patients, **g)] if name != "draws" else []
    verbs += [lambda **g: clinic.sample(3, **g)] if name in ("temperature", "generator") else []
    for verb in verbs:
        with pytest.raises(ValueError, match=naming(named)) as caught:
            verb(**given)
        assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("size", [-1, 2.5, "3", None, True])
def test_sizes_that_make_no_sense_are_named(clinic, size):
    for verb in (clinic.sample, clinic.attributes.sample):
        with pytest.raises(SchemaError, match=re.escape(f"size={size!r}")):
            verb(size)
    assert clinic.sample(0)["image"].shape == (0, 1, 4, 4)


@pytest.mark.parametrize("image, named", [
    (Image.new("L", (4, 4)), "Image"), (None, "NoneType"), ("scan.png", "image str"),
    ([[1.0], [2.0, 3.0]], "image list"),
    (torch.zeros(4, 4), "(4, 4)"), (torch.tensor(0.5), "()"),
])
def test_what_is_no_image_is_refused(clinic, patients, image, named):
    for verb in (lambda o: clinic.counterfactual(o, {}), clinic.abduct, clinic.regenerate, clinic.log_prob):
        with pytest.raises(SchemaError, match=naming(named, "(B, 1, 4, 4)")):
            verb({**patients, "image": image})


@pytest.mark.parametrize("observed", [None, "scan.png", [1, 2], torch.zeros(3)], ids=type)
def test_what_is_no_observation_is_refused(clinic, observed):
    for verb in (lambda o: clinic.counterfactual(o, {}), clinic.abduct, clinic.regenerate, clinic.log_prob):
        with pytest.raises(SchemaError, match=naming(f"{type(observed).__name__} age sex finding weight")):
            verb(observed)
    with pytest.raises(SchemaError, match=naming(f"{type(observed).__name__}")):
        clinic.attributes.abduct(observed)


def test_no_rows_are_no_error(clinic, patients):
    none = {name: value[:0] for name, value in patients.items()}
    for draws in (None, 2):
        noise = clinic.abduct(none, draws=draws)
        assert len(noise.image) == 0 and clinic.predict(noise, {"age": 1.0})["image"].shape == (0, 1, 4, 4)
        answer = clinic.counterfactual(none, {"age": 1.0}, draws)
        assert answer.image.shape == (0, 1, 4, 4) and len(answer["finding"]) == 0
    assert clinic.regenerate(none).shape == (0, 1, 4, 4)
    assert {name: len(value) for name, value in clinic.log_prob(none).items()} == dict.fromkeys((*none,), 0)


def test_weights_in_double_precision_are_refused(clinic, patients):
    double = DSCM(copy_of(clinic.attributes), copy_of(clinic.image))
    double.image.double()
    for verb in (lambda: double.counterfactual(patients, {}), lambda: double.abduct(patients), lambda: double.sample(2)):
        with pytest.raises(RunError, match=naming("HVAE torch.float64 .float()")):
            verb()
    double.attributes.double()
    for verb in (double.attributes.sample, lambda size: double.attributes.abduct(patients)):
        with pytest.raises(RunError, match=naming("AttributeSCM torch.float64")):
            verb(2)


@pytest.mark.parametrize("run", [None, 3, ["runs/model"]])
def test_what_is_no_run_folder_is_refused(run):
    with pytest.raises(RunError, match=re.escape(f"run={run!r}")):
        DSCM.load(run)


@pytest.mark.parametrize("device", ["gpu", "cuda:63", "mps:3", "", None, "CPU", "meta"])
def test_devices_that_are_not_there_are_named(clinic, tiny_run, device):
    for verb in (lambda: DSCM.load(tiny_run, device), lambda: clinic.to(device)):
        with pytest.raises(RunError, match=naming(f"device={device!r} cpu")):
            verb()


# ---------------------------------------------------------------------------------------------------- run folders
@pytest.fixture
def copy(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_loaded_twice_is_the_same(dscm, observed, tiny_run):
    again = DSCM.load(str(tiny_run))
    assert torch.equal(again.counterfactual(observed, {"thickness": 3.0}).image, dscm.counterfactual(observed, {"thickness": 3.0}).image)
    assert again.graph.fingerprint() == dataset_of(tiny_run).graph.fingerprint() and not again.image.training


def test_missing_folders(tmp_path):
    with pytest.raises(RunError, match=naming(f"{tmp_path}/absent pgm.train --run {tmp_path}/absent")):
        DSCM.load(tmp_path / "absent")
    with pytest.raises(RunError, match=naming(tmp_path, "run.json")):
        DSCM.load(tmp_path)


@pytest.mark.parametrize("folder, command", [("pgm", "pgm.train"), ("image", "mechanisms.train")])
def test_missing_mechanism_names_its_command(copy, folder, command):
    shutil.rmtree(copy / folder)
    with pytest.raises(RunError, match=naming(f"{folder} {command} --run {copy}")):
        DSCM.load(copy)


@pytest.mark.parametrize("folder", ["pgm", "image"])
def test_damaged_mechanism_is_named(copy, folder):
    path = copy / folder / "mechanism.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=naming(path)):
        DSCM.load(copy)


def test_swapped_mechanisms_are_refused(copy):
    (copy / "pgm" / "mechanism.pt").rename(copy / "kept.pt")
    shutil.copy(copy / "image" / "mechanism.pt", copy / "pgm" / "mechanism.pt")
    with pytest.raises(RunError, match=naming(copy / "pgm" / "mechanism.pt", "'hvae' 'attributes'")):
        DSCM.load(copy)
    shutil.copy(copy / "kept.pt", copy / "pgm" / "mechanism.pt")
    shutil.copy(copy / "kept.pt", copy / "image" / "mechanism.pt")
    with pytest.raises(RunError, match=naming("'attributes' hvae vae")):
        DSCM.load(copy)


def test_other_statistics_are_refused(copy):
    path = copy / "pgm" / "mechanism.pt"
    state = load(path)
    for variable in state["graph"]["variables"]:
        if variable["name"] == "thickness":
            variable["statistics"]["mean"] += 0.1
    save(path, state)
    with pytest.raises(RunError, match=naming("thickness.statistics")):
        DSCM.load(copy)


def test_mechanisms_of_other_graphs_are_refused(dscm):
    variables = [v for v in dscm.graph if v.name not in ("image", "digit")]
    other = Graph([*variables, Variable("image", "image", ("thickness", "intensity"), shape=(1, 32, 32))])
    with pytest.raises(RunError, match=naming("digit image.parents")):
        DSCM(dscm.attributes, HVAE(other, ImageConfig(z_dim=2, widths="16:8,8:8,4:8,1:8")))
    with pytest.raises(RunError, match=naming("digit image.parents")):
        DSCM(AttributeSCM(other), dscm.image)


@pytest.mark.parametrize("folder", ["pgm", "image"])
def test_a_flipped_bit_of_a_mechanism_is_noticed(copy, folder):
    path = copy / folder / "mechanism.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4  # among the weights: all would load, and answer
    path.write_bytes(content)
    with pytest.raises(RunError, match=naming(path)):
        DSCM.load(copy)


@pytest.mark.parametrize("folder, config", [
    ("pgm", {"bins": 10**9, "hidden": [32, 32]}), ("pgm", {"bins": 8}), ("pgm", {"bins": "8", "hidden": [32]}), ("pgm", None),
    ("image", {"z_dim": 10**9}), ("image", {"depth": 3}), ("image", {"widths": 8}), ("image", {"widths": "16:8"}), ("image", [])])
def test_weights_of_another_configuration_are_refused(copy, folder, config):
    path = copy / folder / "mechanism.pt"
    state = load(path)
    wrong = {**state["config"], **config} if folder == "image" and config else config
    save(path, {**state, "config": wrong})
    with pytest.raises(RunError, match=naming(path)):
        DSCM.load(copy)


@pytest.mark.parametrize("content, named", [
    ("[]", "list"), ("{}", "dataset options graph"), ("[" * 50_000, "run.json"),
    ('{"dataset": 1, "options": {}, "graph": {}}', "dataset int"),
    ('{"dataset": "morphomnist", "options": {}, "graph": {"variables": [1]}}', ""),
    ('{"dataset": "morphomnist", "options": {}, "graph": {"nodes": []}}', "'variables'")])
def test_a_damaged_run_record_is_refused(copy, content, named):
    (copy / "run.json").write_text(content)
    with pytest.raises(RunError, match=naming(copy / "run.json", named)):
        graph_of(copy)
