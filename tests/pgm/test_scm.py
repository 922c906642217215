"""The attributes' SCM: laws of the graph, agreement with Pyro's and ChiRho's handlers, refusals, the command line."""

from __future__ import annotations

import io
import math
import warnings

import pyro
import pytest
import torch
from torch import Tensor

from datasets import Graph, SchemaError, Variable
from mechanisms.discrete import GumbelMax
from pgm import AttributeConfig, AttributeSCM, parse_do, resolve_do
from pgm.scm import noise_site

SIZE = 400
IMAGE = Variable("image", "image", ("intensity", "digit"), shape=(1, 8, 8))
# 'type' is also a method of torch modules; a graph may use the name all the same
VARIABLES = (
    Variable("thickness", "positive"),
    Variable("intensity", "interval", ("thickness",), low=64, high=255),
    Variable("digit", "categorical", classes=10),
    Variable("finding", "binary", ("thickness", "digit"), classes=("absent", "present")),
    Variable("type", "real", ("finding", "intensity")),
    IMAGE,
)
NAMES = tuple(v.name for v in VARIABLES[:-1])
DOWNSTREAM = {"thickness": {"intensity", "finding", "type"}, "digit": {"finding", "type"}, "intensity": {"type"},
              "finding": {"type"}, "type": set()}
DO = {"thickness": 3.0, "digit": 4, "intensity": 100.0, "finding": 1.0, "type": 0.5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(size: int = SIZE) -> dict[str, Tensor]:
    torch.manual_seed(1)
    t = 0.5 + torch.distributions.Gamma(10.0, 5.0).sample((size,))
    i = 64 + 191 * torch.sigmoid(2 * (t - 2.5) + 0.5 * torch.randn(size))
    digit = torch.randint(9, (size,))  # class 9 is never seen
    finding = (torch.rand(size) < 0.2 + 0.05 * digit).long()
    score = i / 50 + finding + torch.randn(size)
    return {"thickness": t, "intensity": i, "digit": digit, "finding": finding, "type": score}


@pytest.fixture(scope="module")
def observed() -> dict[str, Tensor]:
    return draw()


@pytest.fixture(scope="module")
def scm(observed) -> AttributeSCM:
    torch.manual_seed(0)
    scm = AttributeSCM(Graph(VARIABLES).fitted(observed))
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return scm


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], names=NAMES) -> None:
    for name in names:
        if left[name].is_floating_point():
            torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert torch.equal(left[name], right[name]), name


# ---------------------------------------------------------------------------------------------------- laws
def test_nothing_done_returns_the_observation(scm, observed):
    result = scm.counterfactual(observed, {}, generator())
    assert tuple(result) == scm.names and all(torch.equal(result[name], observed[name]) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_only_descendants_change(scm, observed, name):
    result = scm.counterfactual(observed, {name: DO[name]}, generator())
    assert (result[name] == DO[name]).all() and result[name].dtype == observed[name].dtype
    for other in set(NAMES) - {name}:
        assert torch.equal(result[other], observed[other]) == (other not in DOWNSTREAM[name]), other
        assert result[other].data_ptr() != observed[other].data_ptr()


def test_intervened_descendant_is_held(scm, observed):
    result = scm.counterfactual(observed, {"thickness": 3.0, "intensity": 100.0}, generator())
    assert (result["intensity"] == 100).all() and not torch.equal(result["finding"], observed["finding"])


def test_doing_what_was_observed_changes_nothing(scm, observed):
    do = {"thickness": lambda t: t, "digit": observed["digit"]}
    assert_same(scm.counterfactual(observed, do, generator()), observed)


def test_predict_inverts_abduct(scm, observed):
    assert_same(scm.predict(scm.abduct(observed, generator())), observed)


def test_predict_of_abducted_noise_is_the_counterfactual(scm, observed):
    do = {"thickness": lambda t: t + 0.5, "digit": 3}
    noise = scm.abduct(observed, generator())
    assert_same(scm.predict(noise, do), scm.counterfactual(observed, do, generator()))


def test_generator_reproduces_and_global_state_is_untouched(scm, observed):
    state = torch.get_rng_state()
    do = {"thickness": 2.0}
    for verb in (lambda g: scm.sample(50, do, g), lambda g: scm.counterfactual(observed, do, g)):
        first, second, third = verb(generator(3)), verb(generator(3)), verb(generator(4))
        assert all(torch.equal(first[name], second[name]) for name in NAMES)
        assert any(not torch.equal(first[name], third[name]) for name in NAMES)
    assert torch.equal(state, torch.get_rng_state())


def test_counterfactuals_of_samples_are_interventional_samples(scm):
    size, do = 20_000, {"thickness": 3.0}
    factual = scm.sample(size, generator=generator())
    counterfactual, interventional = scm.counterfactual(factual, do, generator(1)), scm.sample(size, do, generator(2))
    quantiles = torch.linspace(0.05, 0.95, 19)
    for name in NAMES:
        if scm.graph[name].continuous:
            left, right = (x[name].quantile(quantiles) for x in (counterfactual, interventional))
            assert (left - right).abs().max() < 0.05 * interventional[name].std() + 1e-6, name
        else:
            left, right = (torch.bincount(x[name], minlength=10) / size for x in (counterfactual, interventional))
            assert (left - right).abs().max() < 0.02, name


def test_log_prob_and_loss(scm, observed):
    terms, output = scm.log_prob(observed), scm({**observed, "image": torch.zeros(SIZE, 1, 8, 8)})
    assert tuple(terms) == scm.names and all(term.shape == (SIZE,) for term in terms.values())
    torch.testing.assert_close(output["loss"], -sum(terms.values()))
    output["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in scm.parameters())


def test_the_three_steps_are_differentiable(scm, observed):
    """d type*/d thickness, through abduction, and d intensity*/d do(thickness), against differences."""
    def effects(shift: Tensor, do: Tensor) -> tuple[Tensor, Tensor]:
        world = {name: value[:50].double() if value.is_floating_point() else value[:50] for name, value in observed.items()}
        noise = scm.abduct({**world, "thickness": world["thickness"] + shift}, generator())
        answer = scm.counterfactual(world, {"thickness": do.expand(50)}, generator())
        return scm.predict(noise, {"thickness": world["thickness"]})["intensity"].mean(), answer["intensity"].mean()

    shift, do = torch.zeros((), requires_grad=True), torch.tensor(3.0, requires_grad=True)
    for k, variable in enumerate((shift, do)):
        gradient, = torch.autograd.grad(effects(shift, do)[k], variable)
        step = torch.tensor(0.01)
        with torch.no_grad():
            up, down = (effects(shift + (1 - k) * sign * step, do + k * sign * step)[k] for sign in (1, -1))
        assert gradient.item() == pytest.approx(((up - down) / (2 * step)).item(), rel=0.05) and gradient != 0
    parameter = scm.mechanism("intensity").conditioner.initial
    assert torch.autograd.grad(effects(shift, do)[1], parameter)[0].any()


def test_saved_and_loaded_gives_the_same(scm, observed):
    file = io.BytesIO()
    torch.save({"graph": scm.graph.to_dict(), "state": scm.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = AttributeSCM(Graph.from_dict(saved["graph"]))
    other.load_state_dict(saved["state"])
    do = {"thickness": 2.0}
    left, right = (s.counterfactual(observed, do, generator()) for s in (scm, other))
    assert all(torch.equal(left[name], right[name]) for name in NAMES)


def test_works_under_data_parallelism(scm, observed, tmp_path):
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs a process group of its own")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(AttributeSCM(scm.graph))
        for _ in range(2):  # a parameter without gradient would stop the second round
            parallel(observed)["loss"].mean().backward()
    finally:
        distributed.destroy_process_group()


def test_other_mechanisms_and_sizes(scm):
    own = GumbelMax(scm.graph["digit"], 0)
    other = AttributeSCM(scm.graph, AttributeConfig(bins=4, hidden=(8,)), {"digit": own})
    assert other.mechanism("digit") is own
    assert sum(p.numel() for p in other.parameters()) < sum(p.numel() for p in scm.parameters())
    with pytest.raises(SchemaError, match="thickness, digit"):
        AttributeSCM(scm.graph, mechanisms={"digits": own})
    with pytest.raises(SchemaError, match="at least one"):
        AttributeSCM(Graph([Variable("image", "image", shape=(1, 8, 8))]))
    with pytest.raises(SchemaError, match="no mechanism of 'image'"):
        scm.mechanism("image")


# ---------------------------------------------------------------------------------------------------- Pyro
def test_model_is_a_pyro_program(scm, observed):
    trace = pyro.poutine.trace(scm.model).get_trace(SIZE)
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and name in NAMES]
    assert tuple(sites) == scm.names
    assert all(trace.nodes[name]["value"].shape == (SIZE,) for name in NAMES)
    conditioned = pyro.poutine.trace(pyro.condition(scm.model, data=observed)).get_trace(SIZE)
    conditioned.compute_log_prob()
    for name, term in scm.log_prob(observed).items():
        torch.testing.assert_close(conditioned.nodes[name]["log_prob"], term)


def test_pyro_do_agrees_with_sample(scm):
    size = 20_000
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = pyro.poutine.do(scm.model, data={"thickness": torch.full((size,), 2.0)})(size)
    ours = scm.sample(size, {"thickness": 2.0}, generator())
    assert (theirs["thickness"] == 2).all()
    for name in ("intensity", "type"):
        assert (theirs[name].mean() - ours[name].mean()).abs() < 0.05 * ours[name].std() + 1e-6
    assert (theirs["finding"].float().mean() - ours["finding"].float().mean()).abs() < 0.02


def test_model_is_vectorised(scm):
    with torch.no_grad(), pyro.plate("particles", 7, dim=-2):
        values = scm.model(5)
    assert all(values[name].shape == (7, 5) for name in ("intensity", "finding", "type"))


def test_structural_program_is_the_same_model(scm, observed):
    noise = {noise_site(name): value for name, value in scm.abduct(observed, generator()).items()}
    with torch.no_grad():
        assert_same(pyro.condition(scm.structural, data=noise)(SIZE), observed)
        assert all(value.shape == (6,) for value in scm.structural(6).values())


@pytest.mark.parametrize("names", [("thickness",), ("digit", "thickness"), ("finding",), ("intensity", "finding")])
def test_chirho_worlds_agree(scm, observed, names):
    pytest.importorskip("chirho")
    from chirho.counterfactual.handlers import MultiWorldCounterfactual
    from chirho.indexed.ops import IndexSet, gather
    from chirho.interventional.handlers import do

    actions = {name: torch.full_like(observed[name], DO[name]) for name in names}
    noise = {noise_site(name): value for name, value in scm.abduct(observed, generator()).items()}
    program = pyro.condition(scm.structural, data=noise)
    with torch.no_grad(), MultiWorldCounterfactual(first_available_dim=-2), do(actions=actions):
        values = program(SIZE)
        factual, counterfactual = ({name: gather(value, world).reshape(-1) for name, value in values.items()}
                                   for world in (IndexSet(**{n: {index} for n in names}) for index in (0, 1)))
    assert_same(factual, observed)
    assert_same(counterfactual, scm.counterfactual(observed, actions, generator()))


# ---------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("do, message", [
    ({"width": 3}, "names are thickness, digit, intensity, finding, type"),
    ({"image": 0.0}, "cannot intervene on 'image'"),
    ({"thickness": "thick"}, "not a number"),
    ({"thickness": None}, "not a number"),
    ({"thickness": math.nan}, "thickness=nan.*no support"),
    ({"thickness": -1}, "thickness=-1.*above 0"),
    ({"intensity": 300.0}, r"\[64, 255\]"),
    ({"digit": 12}, "digit=12.*10 classes"),
    ({"digit": 1.5}, "digit=1.5.*10 classes"),
    ({"digit": lambda digit: digit + 9}, "no support"),
    ({"thickness": torch.ones(3)}, f"3 values for {SIZE} rows"),
    ({"thickness": [2.0]}, f"1 values for {SIZE} rows"),
])
def test_do_refuses(scm, observed, do, message):
    with pytest.raises(SchemaError, match=message):
        scm.counterfactual(observed, do)


def test_refuses_bad_observations(scm, observed):
    with pytest.raises(SchemaError, match="missing thickness"):
        scm.abduct({name: value for name, value in observed.items() if name != "thickness"})
    with pytest.raises(SchemaError, match="different length"):
        scm.log_prob({**observed, "digit": observed["digit"][:5]})
    with pytest.raises(SchemaError, match="function of the observed thickness"):
        resolve_do(scm.graph, {"thickness": lambda t: t}, {}, 3)


def test_beyond_training_is_flagged_and_warned_once(scm, observed):
    do = {"thickness": torch.linspace(2, 30, SIZE), "digit": 9}
    statistics = scm.graph["thickness"].statistics
    with pytest.warns(UserWarning) as caught:
        values, beyond = resolve_do(scm.graph, do, observed, SIZE)
    assert len(caught) == 2 and f"[{statistics.minimum:g}, {statistics.maximum:g}]" in str(caught[0].message)
    assert "class 9" in str(caught[1].message)
    assert torch.equal(beyond["thickness"], values["thickness"] > observed["thickness"].max()) and beyond["digit"].all()
    with warnings.catch_warnings(record=True) as caught:  # the words depend on no value, so that Python's own filter says them once
        warnings.simplefilter("always")
        for worst in (30.0, 31.0, 32.0):
            result = scm.counterfactual(observed, {**do, "thickness": worst}, generator())
    assert len(caught) == 6 and len({str(told.message) for told in caught}) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, inside = resolve_do(scm.graph, {"thickness": observed["thickness"]}, observed, SIZE)
    assert not inside["thickness"].any()
    scm.graph.check(result)


# ---------------------------------------------------------------------------------------------------- command line
def test_parse_values(scm, observed):
    graph = scm.graph
    parsed = parse_do(["thickness = 1.5, 3", "thickness+=-0.25", "finding=present,0"], graph)
    labels = ["thickness=1.5", "thickness=3", "thickness+=-0.25", "finding=present", "finding=absent"]
    assert [label for label, _ in parsed] == labels
    assert parsed[0][1] == {"thickness": 1.5} and parsed[3][1] == {"finding": 1.0}
    shifted = scm.counterfactual(observed, parsed[2][1], generator())["thickness"]
    assert torch.equal(shifted, observed["thickness"] - 0.25)
    assert parse_do("digit=3", graph) == [("digit=3", {"digit": 3.0})]


@pytest.mark.parametrize("classes, text, labels, indices", [
    (("1", "2", "3", "4", "5"), "c=1,5", ["c=1", "c=5"], [0, 4]), (("1", "2", "3", "4", "5"), "c=2.0", ["c=2"], [1]),
    (("38", "43", "115"), "c=43, 38", ["c=43", "c=38"], [1, 0]), (("F", "M"), "c=1,F", ["c=M", "c=F"], [1, 0]),
    (("0", "1"), "c=True,0", ["c=1", "c=0"], [1, 0]), (("a, b", "c=d", "e~f"), "c=a, b", ["c=a, b"], [0]),
    (("a, b", "c=d", "e~f"), "c=c=d,e~f", ["c=c=d", "c=e~f"], [1, 2]), (("$x$", "ü 1"), "c=$x$,ü 1", ["c=$x$", "c=ü 1"], [0, 1])])
def test_labels_name_the_class_that_is_set(classes, text, labels, indices):
    graph = Graph([Variable("c", "categorical", classes=classes), Variable("image", "image", ("c",), shape=(1, 8, 8))])
    parsed = parse_do(text, graph)
    assert [label for label, _ in parsed] == labels and [do["c"] for _, do in parsed] == indices
    for (_, do), name in zip(parsed, (label[2:] for label in labels), strict=True):  # of Python, the same words
        values, _ = resolve_do(graph, {"c": name}, {}, 3)
        assert values["c"].tolist() == [int(do["c"])] * 3


@pytest.mark.parametrize("text", ["c=0", "c=6", "c=1.5", "c=-1", "c=one", "c=", "c=nan", "c=1,0"])
def test_numbers_that_are_no_class_are_refused_where_classes_are_numbers(text):
    graph = Graph([Variable("c", "categorical", classes=("1", "2", "3", "4", "5")), Variable("image", "image", ("c",), shape=(1, 8, 8))])
    with pytest.raises(SchemaError, match=rf"c='.*{text}.*1, 2, 3, 4, 5"):
        parse_do(text, graph)


def test_parse_marginal(scm, observed):
    training = torch.tensor([1.0, 2.0, 3.0])
    label, do = parse_do("thickness~marginal", scm.graph, {"thickness": training}, generator())[0]
    drawn = scm.counterfactual(observed, do)["thickness"]
    assert label == "thickness~marginal" and set(drawn.tolist()) == {1.0, 2.0, 3.0}
    _, do = parse_do("digit~marginal", scm.graph, generator=generator())[0]
    permuted = scm.counterfactual(observed, do)["digit"]
    assert not torch.equal(permuted, observed["digit"])
    assert torch.equal(permuted.sort().values, observed["digit"].sort().values)


@pytest.mark.parametrize("text, message", [
    ("thickness", "cannot read.*name=value.*names are thickness"),
    ("thickness-=1", "cannot read"),
    ("width=3", "cannot intervene on 'width'; names are thickness"), ("thicknes=3", r"\(did you mean thickness\?\)"),
    ("thickness=", "'' in 'thickness=' is not a number"),
    ("thickness=1,,2", "not a number"),
    ("thickness=thick", "not a number: thickness is a number above 0"),
    ("thickness=-1", "no support"),
    ("finding=maybe", "absent, present"),
    ("finding+=present", "not a number"),
    ("thickness~uniform", "'uniform'.*name~marginal"),
])
def test_parse_refuses(scm, text, message):
    with pytest.raises(SchemaError, match=message):
        parse_do(text, scm.graph)
