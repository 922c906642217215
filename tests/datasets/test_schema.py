"""Variables and graphs: what they accept, what they refuse and say about it, and what survives a file."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from datasets import Graph, SchemaError, Statistics, Variable, encode_parents
from tests.errors import naming

IMAGE = Variable("image", "image", ("thickness",), shape=(1, 8, 8))
THICKNESS = Variable("thickness", "positive", unit="px")
IMAGE_ALONE = Variable("image", "image", shape=(1, 8, 8))
KINDS = {
    "real": Variable("x", "real"),
    "positive": Variable("x", "positive", low=0.5),
    "interval": Variable("x", "interval", low=-3, high=7),
    "binary": Variable("x", "binary", classes=("absent", "present")),
    "categorical": Variable("x", "categorical", classes=10),
}
DATA = {
    "real": torch.tensor([-4.0, 0.0, 10.0, 3.0]),
    "positive": torch.tensor([0.6, 1.0, 30.0, 2.0]),
    "interval": torch.tensor([-2.9, 0.0, 6.5, 1.0]),
    "binary": torch.tensor([0, 1, 1, 1]),
    "categorical": torch.tensor([0, 9, 3, 3]),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def chain(*parents: tuple[str, ...]) -> list[Variable]:
    """Variables a, b, c, … with the given parents, and an image without any."""
    names = "abcdef"[:len(parents)]
    return [*(Variable(n, "real", p) for n, p in zip(names, parents, strict=True)), Variable("image", "image", shape=(1, 8, 8))]


# ---------------------------------------------------------------------------------------------------- variables
@pytest.mark.parametrize("arguments, message", [
    (dict(name="a b", kind="real"), "'a b'"),
    (dict(name="x", kind="ordinal"), "'ordinal' real positive"),
    (dict(name="x", kind="real", parents="yz"), "'x' parents 'yz'"),
    (dict(name="x", kind="real", parents=("y", "y")), "'x' y"),
    (dict(name="x", kind="interval"), "'x' low high None"),
    (dict(name="x", kind="interval", low=2, high=2), "'x' low=2.0 high=2.0"),
    (dict(name="x", kind="categorical"), "classes=K"),
    (dict(name="x", kind="categorical", classes=1), "classes=K 2"),
    (dict(name="x", kind="image"), "shape="),
    (dict(name="x", kind="image", shape=(8, 8)), "shape="),
    (dict(name="x", kind="image", shape=(1, 8, 0)), "shape="),
    (dict(name="x", kind="image", shape=(1, 8.5, 8)), "8.5"),
    (dict(name="x", kind="image", shape="abc"), "'abc'"),
    (dict(name="", kind="real"), "''"),
    (dict(name="lambda", kind="real"), "'lambda'"),
    (dict(name="x", kind="real", parents=None), "None"),
    (dict(name="x", kind="real", parents=(1,)), "'x' 1"),
    (dict(name="x", kind="real", unit=None), "None"),
    (dict(name="x", kind="interval", low="a", high=2), "low='a'"),
    (dict(name="x", kind="interval", low=-math.inf, high=2), "low=-inf"),
    (dict(name="x", kind="categorical", classes=("left", "right", "left")), "'left'"),
    (dict(name="x", kind="categorical", classes=("left", "left ")), "'left'"),
    (dict(name="x", kind="categorical", classes=("a", " ")), "''"),
    (dict(name="x", kind="categorical", classes="benign"), "'benign'"),
    (dict(name="x", kind="categorical", classes=(1, 2)), "'1'"),
    (dict(name="x", kind="categorical", classes=("a", None)), "None"),
    (dict(name="x", kind="categorical", classes={"a", "b"}), "'x' {"),  # whose order differs from process to process
    (dict(name="x", kind="categorical", classes=True), "True"),
    (dict(name="x", kind="categorical", classes=2.0), "2.0"),
    (dict(name="x", kind="binary", classes=("a", "b", "c")), "'x' 3 a b c"),
    (dict(name="x", kind="binary", classes=3), "'x' 3 0 1 2"),
    (dict(name="x", kind="real", classes=("a", "b")), "classes=('a', 'b')"),
])
def test_contradictory_variables_are_refused(arguments, message):
    with pytest.raises(SchemaError, match=naming(message)):
        Variable(**arguments)


@pytest.mark.parametrize("kind, values", [
    ("real", "thick"), ("real", None), ("real", math.nan), ("real", -math.inf), ("real", ["1", "2"]),
    ("positive", "1"), ("positive", math.nan), ("positive", -1), ("positive", 0.5), ("positive", [1.0, 0.2]),
    ("interval", 7.01), ("interval", -4), ("interval", math.nan), ("interval", math.inf),
    ("binary", 2), ("binary", -1), ("binary", 0.5), ("binary", "presen"), ("binary", math.nan),
    ("categorical", 12), ("categorical", -1), ("categorical", 3.5), ("categorical", 10), ("categorical", {}),
])
def test_values_without_support_are_refused(kind, values):
    with pytest.raises(SchemaError, match=naming("x=", KINDS[kind].support)):
        KINDS[kind].check(values)


FILTERED = pd.DataFrame({"x": np.arange(20), "part": ["train", "test"] * 10})
MANY = ["no", "yes"] * 30_000


@pytest.mark.parametrize("values", [
    FILTERED[FILTERED.part == "test"].x % 2, FILTERED[FILTERED.part == "test"][["x"]] % 2, pd.Index([1] * 10),
    *(np.ones(10, t) for t in ("u1", "u2", "u4", "u8", "i1", ">i4", ">f8", "f2", "g", "?", "O")),
    np.array(["1"] * 10), np.array([b"1"] * 10),
    np.array([["1", "x"]] * 10)[:, 0], np.ones(10)[::-1], torch.ones(10, dtype=torch.uint16),
    [True] * 10, ["1"] * 10, [np.str_("1")] * 10, [b"1"] * 10, [torch.tensor(1)] * 10, range(1, 2),
    pd.array([1] * 10, dtype="Int64"), pd.Series([True] * 10, dtype="boolean"), pd.Series(["1"] * 10, dtype="category"),
    np.array([1, "1", True, 1.0, np.uint8(1)] * 2, dtype=object)], ids=range(29))
def test_columns_of_any_kind_are_taken_by_position(values):
    found = Variable("x", "binary").check(values)
    assert found.dtype == torch.int64 and set(found.tolist()) == {1} and found.shape == (len(values),)


def test_rows_keep_their_order_whatever_their_index_says():
    column = FILTERED[FILTERED.part == "test"].x.sort_values(ascending=False)
    assert Variable("x", "real").check(column).tolist() == list(range(19, 0, -2))
    assert Variable("x", "binary", classes=("no", "yes")).check(MANY).tolist() == [0, 1] * 30_000


@pytest.mark.parametrize("variable, values, told", [
    (Variable("x", "real"), ["1.5"] * 60_000, "x='1.5' 0 train split"),
    (Variable("x", "real"), [1.0, None], "x=None 1"),
    (Variable("x", "real"), [1.0, math.nan], "x=nan 1"),
    (Variable("x", "real"), pd.array([1, None], dtype="Int64"), "x= 1"),
    (Variable("x", "real"), np.ma.array([1.0, 2.0], mask=[0, 1]), "x 1"),
    (Variable("x", "real"), pd.date_range("2020", "2021", 5), "x train datetime64[us]"),
    (Variable("x", "real"), [[1, 2], [3]], "x train"),
    (Variable("x", "real"), [torch.ones(2), torch.ones(3)], "x train"),
    (Variable("x", "real"), np.array([1, 2**63 + 5], np.uint64), f"x={2**63 + 5} 1"),
    (Variable("x", "binary", classes=("no", "yes")), [*MANY, "maybe"], "x='maybe' 60000 no yes"),
    (Variable("x", "binary", classes=("no", "yes")), ["x" * 100_000], "x=' no yes"),
    (Variable("x", "binary"), ["\x1b[2J\n"], r"x='\x1b[2J\n'"),
], ids=range(12))
def test_columns_that_cannot_be_taken_are_refused_in_a_line(variable, values, told):
    with pytest.raises(SchemaError, match=naming(told)) as error:
        variable.check(values, "the train split")
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


def test_numbers_that_float32_cannot_tell_apart_are_refused():
    seconds = 1.7e9 + torch.arange(500, dtype=torch.float64)
    for kind, values in (("real", seconds), ("positive", seconds.numpy()), ("real", seconds.long()), ("real", seconds.tolist())):
        with pytest.raises(SchemaError, match=naming("x train 1700000249 1.7e+09")):
            Variable("x", kind).check(values, "the train split")
    for fine in (seconds - 1.7e9, 1.7e9 + 86400 * torch.arange(500, dtype=torch.float64), torch.full((9,), 1e9 + 1.0).double(),
                 torch.tensor([1e-30, 2e-30, 3e-30], dtype=torch.float64)):
        assert len(Variable("x", "real").check(fine)) == len(fine)


GRADES = Variable("x", "categorical", classes=("1", "2", "3", "4", "5"))


@pytest.mark.parametrize("classes, word, index", [
    (GRADES.classes, "5", 4), (GRADES.classes, " 1 ", 0), (GRADES.classes, "5.0", 4), (GRADES.classes, "0", None),
    (GRADES.classes, "6", None),
    (("3", "1", "0"), "0", 2), (("38", "43"), "1", None), (("38", "43"), "43", 1), (("01", "1"), "1", 1), (("01", "001"), "1", None),
    (("none", "1"), "0", None), (("none", "1"), "1", 1), (("F", "M"), "F", 0), (("F", "M"), "1", 1), (("F", "M"), "1.0", 1),
    (("F", "M"), "2", None), (("F", "M"), "-1", None), (("F", "M"), "f", None), (("F", "M"), "true", None), (("F", "M"), "nan", None),
    (("0", "1"), "True", 1), (("0", "1"), "false", 0), (("0", "1"), "0", 0), (("True", "False"), "True", 0), (("nan", "inf"), "inf", 1)])
def test_a_class_that_exists_wins_over_an_index(classes, word, index):
    variable = Variable("x", "categorical", classes=classes)
    if index is None:
        for refusing in (variable.class_index, variable.check):
            with pytest.raises(SchemaError, match=naming(f"x='{word}' {classes[0]}")):
                refusing(word)
    else:
        assert variable.class_index(word) == variable.check([word])[0] == index


def test_numbers_are_indices_whatever_classes_are_called():
    assert GRADES.check([0, 4.0]).tolist() == [0, 4]


def test_refusal_names_value_row_and_place():
    with pytest.raises(SchemaError, match=naming("x=12 1 valid 10 0..9")):
        KINDS["categorical"].check([3, 12], "the valid split")
    with pytest.raises(SchemaError, match=naming("x (2, 2) (B,)")):
        KINDS["real"].check(torch.zeros(2, 2))
    with pytest.raises(SchemaError):
        KINDS["real"].check(1j)


@every_kind
@pytest.mark.parametrize("convert", [torch.Tensor.double, lambda v: v.reshape(-1, 1), lambda v: v.tolist(), lambda v: v.numpy()],
                         ids=["double", "column", "list", "numpy"])
def test_check_gives_one_dtype_and_shape(kind, convert):
    checked = KINDS[kind].check(convert(DATA[kind]))
    assert checked.dtype == (torch.int64 if KINDS[kind].discrete else torch.float32)
    assert torch.equal(checked, DATA[kind])


def test_check_takes_booleans_and_small_integers():
    assert KINDS["binary"].check(np.array([True, False])).tolist() == [1, 0]
    assert KINDS["categorical"].check(np.array([9, 0], dtype=np.uint8)).tolist() == [9, 0]


@every_kind
def test_values_at_the_edges_of_the_support(kind):
    edges = {"real": [-1e30, 1e30], "positive": [0.50001, 1e30], "interval": [-3, 7], "binary": [0, 1], "categorical": [0, 9]}[kind]
    variable = KINDS[kind].fitted(DATA[kind])
    checked = variable.check(edges)
    assert variable.encode(checked).isfinite().all()
    if variable.continuous:
        assert variable.unconstrain(checked).isfinite().all()


@every_kind
def test_statistics_are_those_of_the_data(kind):
    statistics, data = KINDS[kind].fitted(DATA[kind]).statistics, DATA[kind]
    if KINDS[kind].discrete:
        assert statistics.counts == tuple((data == k).sum() for k in range(KINDS[kind].cardinality))
    else:
        assert statistics.mean == pytest.approx(data.mean().item(), rel=1e-6)
        assert statistics.std == pytest.approx(data.std().item(), rel=1e-6)
        assert (statistics.minimum, statistics.maximum) == (data.min().item(), data.max().item())


@every_kind
def test_encoding_is_standardised(kind):
    variable = KINDS[kind].fitted(DATA[kind])
    encoded = variable.encode(DATA[kind])
    assert encoded.shape == (4, variable.width) and encoded.dtype == torch.float32
    if variable.discrete:
        assert torch.equal(encoded.argmax(-1), DATA[kind]) and (encoded.sum(-1) == 1).all()
    else:
        assert encoded.mean().abs() < 1e-6 and encoded.std().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["real", "positive", "interval"])
def test_constrain_inverts_unconstrain(kind):
    variable = KINDS[kind].fitted(DATA[kind])
    free = variable.unconstrain(DATA[kind].double())
    assert free.mean().abs() < 1e-6 and free.std().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(variable.constrain(free), DATA[kind].double())
    variable.check(variable.constrain(torch.tensor([-6.0, 0, 6])))


def test_beyond_training():
    thickness = THICKNESS.fitted(torch.tensor([1.0, 4.0]))
    assert thickness.beyond_training(torch.tensor([0.9, 1.0, 4.0, 4.1])).tolist() == [True, False, False, True]
    digit = KINDS["categorical"].fitted(DATA["categorical"])
    assert digit.beyond_training(torch.tensor([0, 1, 9])).tolist() == [False, True, False]
    assert not KINDS["categorical"].beyond_training(torch.tensor([1])).any()  # nothing is known yet


@pytest.mark.parametrize("values", [torch.ones(5), torch.tensor([2.0])])
def test_constant_attribute_is_refused(values):
    with pytest.raises(SchemaError, match=naming("thickness")):
        THICKNESS.fitted(values)


# ---------------------------------------------------------------------------------------------------- graphs
@pytest.mark.parametrize("variables, message", [
    (chain(("c",), ("a",), ("b",)), "cycle a b c"),
    (chain(("a",)), "cycle a"),
    (chain((), ("z",)), "'b' 'z' a b image"),
    ([*chain(()), Variable("a", "binary")], "a"),
    (chain(())[:-1], "0 []"),
    ([*chain(()), Variable("photo", "image", shape=(3, 8, 8))], "2 ['image', 'photo']"),
    (chain(("image",)), "'a' 'image'"),
])
def test_impossible_graphs_are_refused(variables, message):
    with pytest.raises(SchemaError, match=naming(message)):
        Graph(variables)


def test_causes_come_before_effects_whatever_the_order():
    variables = chain(("b", "c"), ("c",), (), ("a",))
    for order in itertools.permutations(variables):
        graph = Graph(order)
        names = [v.name for v in graph]
        assert all(names.index(p) < names.index(v.name) for v in graph for p in v.parents)
        assert [v.name for v in graph.attributes] == ["c", "b", "a", "d"]
        assert graph.fingerprint() == Graph(variables).fingerprint() and not graph.difference(Graph(variables))


def test_order_of_parents_is_irrelevant():
    left, right = (Variable("image", "image", p, shape=(1, 8, 8)) for p in (("b", "a"), ("a", "b")))
    assert left == right
    a, b = Variable("a", "real"), Variable("b", "categorical", classes=3)
    values = {"b": torch.tensor([0, 2]), "a": torch.tensor([1.0, 2.0])}
    encoded = encode_parents([a, b], values, 2)
    assert encoded.tolist() == [[1, 1, 0, 0], [2, 0, 0, 1]]
    assert torch.equal(encoded, encode_parents([b, a], dict(reversed(values.items())), 2))
    assert encode_parents([], {}, 5).shape == (5, 0)
    with pytest.raises(SchemaError, match=naming("'b' a")):
        encode_parents([a, b], {"a": values["a"]}, 2)


def test_descendants():
    graph = Graph([*chain((), ("a",), ("b",), ())[:-1], Variable("image", "image", ("d",), shape=(1, 8, 8))])
    assert graph.descendants(["a"]) == {"b", "c"} and graph.descendants(["d"]) == {"image"}
    assert graph.descendants(["a", "b"]) == {"b", "c"} and graph.descendants([]) == set()
    with pytest.raises(SchemaError, match=naming("'z' a d b image c")):
        graph.descendants(["z"])


def test_graph_checks_names_and_lengths():
    graph = Graph([THICKNESS, Variable("digit", "categorical", classes=10), IMAGE])
    assert set(graph.check({"digit": [1], "thickness": [2.0], "image": None, "id": "p7"})) == {"digit", "thickness"}
    with pytest.raises(SchemaError, match=naming("digit test")):
        graph.check({"thickness": [2.0]}, "the test split")
    with pytest.raises(SchemaError, match=naming("'thickness' 1 'digit' 2")):
        graph.check({"thickness": [2.0], "digit": [1, 2]})


# ---------------------------------------------------------------------------------------------------- persistence
def whole_graph() -> Graph:
    renamed = [Variable.from_dict({**v.to_dict(), "name": f"a_{kind}"}) for kind, v in KINDS.items()]
    graph = Graph([*renamed, Variable("image", "image", ("a_real", "a_binary"), shape=(3, 8, 8), unit="grey levels")])
    return graph.fitted({f"a_{kind}": values for kind, values in DATA.items()})


@pytest.mark.parametrize("through", [lambda state: state, lambda state: json.loads(json.dumps(state))], ids=["dict", "json"])
def test_graph_survives_a_file(through):
    graph = whole_graph()
    again = Graph.from_dict(through(graph.to_dict()))
    assert list(again) == list(graph) and not again.difference(graph)
    assert again.fingerprint() == graph.fingerprint() and again.image.statistics == Statistics()


def test_fingerprint_sees_every_change():
    base = Graph([THICKNESS.fitted(torch.tensor([1.0, 4.0])), IMAGE])
    others = [
        Graph([THICKNESS.fitted(torch.tensor([1.0, 4.1])), IMAGE]),
        Graph([Variable("thickness", "positive", low=0.5), IMAGE]),
        Graph([Variable("thickness", "real"), IMAGE]),
        Graph([THICKNESS, Variable("image", "image", (), shape=(1, 8, 8))]),
        Graph([THICKNESS, Variable("image", "image", ("thickness",), shape=(1, 8, 9))]),
    ]
    assert len({g.fingerprint() for g in (base, *others)}) == 6
    assert base.fingerprint(statistics=False) == others[0].fingerprint(statistics=False) == Graph([THICKNESS, IMAGE]).fingerprint(False)
    assert "thickness.statistics" in base.difference(others[0]) and "thickness.low: 0.0 against 0.5" in base.difference(others[1])


@pytest.mark.parametrize("low", [64, 64.0, np.float64(64), np.int64(64)], ids=repr)
def test_how_a_bound_is_written_does_not_matter(low):
    """A number of NumPy's would make a checkpoint unreadable, and 64 is not another graph than 64.0."""
    variable = Variable("x", "interval", low=low, high=255)
    assert Graph([variable, IMAGE_ALONE]).fingerprint() == Graph([Variable("x", "interval", low=64, high=255.0), IMAGE_ALONE]).fingerprint()
    assert type(variable.low) is float


@pytest.mark.parametrize("variable, value", [(THICKNESS, 1e-50), (KINDS["positive"], 0.5 + 1e-12), (KINDS["real"], 1e300)])
def test_no_value_loses_its_support_in_float32(variable, value):
    """In double precision it has support; rounded, its logarithm would be infinite."""
    with pytest.raises(SchemaError, match=naming(variable.name)):
        variable.check(torch.tensor([value], dtype=torch.float64))


def test_statistics_do_not_depend_on_the_number_of_threads():
    """A run fitted in one thread is the run that two threads open: the last digits of a sum are not told apart."""
    values = {"a": 100 + torch.randn(60_000, generator=torch.Generator().manual_seed(0)).double() / 3}
    values["b"] = (values["a"] + torch.randn(60_000, generator=torch.Generator().manual_seed(1))).float()
    values["a"] = values["a"].float()
    bare, threads = Graph((Variable("a", "real"), Variable("b", "real", ("a",)),
                           Variable("image", "image", ("a", "b"), shape=(1, 4, 4)))), torch.get_num_threads()
    fitted = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            fitted.append(bare.fitted(values))
    finally:
        torch.set_num_threads(threads)
    assert fitted[0].to_dict() == fitted[1].to_dict() == fitted[2].to_dict()
    assert len({graph.fingerprint() for graph in fitted}) == 1


def test_the_last_digits_of_a_sum_make_no_other_graph():
    graph = Graph((Variable("a", "real"), Variable("image", "image", ("a",), shape=(1, 4, 4)))).fitted({"a": torch.randn(100)})
    state = graph.to_dict()
    statistics = next(v for v in state["variables"] if v["name"] == "a")["statistics"]
    statistics["std"] *= 1 + 1e-14
    assert not graph.difference(Graph.from_dict(state)) and graph.fingerprint() == Graph.from_dict(state).fingerprint()
    statistics["std"] *= 1 + 1e-6
    assert "a.statistics" in graph.difference(Graph.from_dict(state)) and graph.fingerprint() != Graph.from_dict(state).fingerprint()
