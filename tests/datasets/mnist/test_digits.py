"""Data sets that tie a label of MNIST digits to a spurious cause: the laws that hold for all, and the commands on each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from datasets import SPLITS, CausalDataset, SchemaError, open_dataset
from datasets.files.idx import DataError
from datasets.mnist.digits import DigitSplits
from datasets.options import DataOptions
from datasets.task import task_of
from tests.errors import naming
from tests.registered import data_sets

SMALL = {"train_digits": 60, "valid_digits": 20, "test_digits": 30}
KINDS = {"coloredmnist": {}, "coloredmnist-28": {"size": 28}, "spuriousmnist": {"mix": 0.2}, "colourmnist": {"strength": 0.7},
         "colourmnist-free": {"strength": 0.0}, "morphomnist-confounded": {"renderings": 1},
         "morphomnist-confounded-intensity": {"renderings": 1, "tied": "intensity"}, "photo-backgrounds": {"strength": 0.7},
         "photo-backgrounds-64": {"size": 64, "strength": 0.5}}


def name_of(kind: str) -> str:
    return kind.removesuffix("-28").removesuffix("-64").removesuffix("-free").removesuffix("-intensity")


def opened(kind: str, **options: object) -> CausalDataset:
    return open_dataset(name_of(kind), {**KINDS.get(kind, {}), **SMALL, **options})


@pytest.fixture(scope="module", params=list(KINDS))
def dataset(request, session_cache):
    return opened(request.param)


def equal(a: dict, b: dict, names=None) -> bool:
    return all(torch.equal(a[n], b[n]) for n in (names or a))


def other(dataset: CausalDataset, name: str, values: torch.Tensor) -> torch.Tensor:
    """Another value of each row."""
    variable = dataset.graph[name]
    if variable.discrete:
        return (values + 1) % variable.cardinality
    return values.flip(0) + 0.1 * variable.statistics.std * (values.flip(0) == values)


# ---------------------------------------------------------------------------------------------------- laws
def test_shapes_and_task(dataset):
    for split, size in zip(SPLITS, (60, 20, 30), strict=True):
        rows = dataset.split(split)
        assert len(rows) == size and rows.images.shape[1:] == dataset.schema.image.shape
        assert rows.images.flatten(1).amax(1).min() > 50
        assert dataset.environments(split) is None or dataset.environments(split).bincount().tolist() == [size // 2] * 2
    task = task_of(dataset)
    assert task.label.name == dataset.label and {v.name for v in task.spurious} == set(dataset.spurious)
    assert set(dataset.spurious) <= set(dataset.graph.image.parents)
    assert task.split("train").attributes["group"].max() < len(task.group_names)


def test_splits_share_no_digit(dataset):
    seen = [{d.tobytes() for d in dataset._digits[split][0]} for split in SPLITS]
    assert [len(s) for s in seen] == [60, 20, 30]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_null_intervention_is_the_observation(dataset):
    for split in SPLITS:
        index = torch.arange(len(dataset.split(split)))
        seen = dataset.split(split).batch(index)
        assert equal(dataset.true_counterfactual(split, index, {}), seen)
        for name in dataset.true_images_under:
            assert equal(dataset.true_counterfactual(split, index, {name: seen[name]}), seen), name


def test_only_descendants_change_and_setting_back_restores(dataset):
    index = torch.tensor([7, 0, 29, 7, 3, 11, 12, 13])
    seen = dataset.split("test").batch(index)
    for name in dataset.true_images_under:
        value = other(dataset, name, seen[name])
        truth = dataset.true_counterfactual("test", index, {name: value})
        below = dataset.graph.descendants([name])
        assert torch.equal(truth[name], value)
        assert equal(truth, seen, [v.name for v in dataset.graph if v.name not in below and v.name != name])
        if name in dataset.graph.image.parents:
            assert (truth["image"] != seen["image"]).flatten(1).any(1).all(), name
        assert equal(dataset.true_counterfactual("test", index, {name: seen[name]}), seen)
    one = dataset.true_counterfactual("test", index[2:3], {name: value[2:3]})
    assert equal(one, {n: v[2:3] for n, v in truth.items()})


def test_the_label_is_felt_through_what_it_causes(dataset):
    """do(label) is do(its effects, with the values that they take)."""
    if "label" not in dataset.true_images_under:
        return
    index = torch.arange(30)
    truth = dataset.true_counterfactual("test", index, {"label": 1 - dataset.split("test").attributes["label"]})
    effects = {n: truth[n] for n in dataset.spurious}
    assert torch.equal(dataset.true_counterfactual("test", index, effects)["image"], truth["image"])
    changed = {n for n in dataset.spurious if not torch.equal(truth[n], dataset.split("test").attributes[n])}
    assert changed == dataset.graph.descendants(["label"]) & set(dataset.spurious)


def test_measures_what_was_set(dataset):
    index = torch.arange(30)
    for name in dataset.spurious:
        truth = dataset.true_counterfactual("test", index, {name: other(dataset, name, dataset.split("test").attributes[name])})
        for images, values in ((truth["image"], truth), (dataset.split("test").batch(index)["image"], dataset.split("test").attributes)):
            measured = dataset.measure(images)[name]
            if dataset.schema[name].discrete:
                assert torch.equal(measured, values[name])
            else:
                assert (measured - values[name]).abs().mean() < {"thickness": 0.3, "intensity": 2}[name]


def test_shifts_set_spurious_attributes_by_the_generator_alone(dataset):
    seen = dataset.split("test").batch(range(30))
    assert dataset.shifts()
    for name, shift in dataset.shifts().items():
        do = shift(seen, torch.Generator().manual_seed(3))
        assert do and set(do) <= set(dataset.spurious), name
        assert equal(do, shift(seen, torch.Generator().manual_seed(3)))
        truth = dataset.true_counterfactual("test", torch.arange(30), do)
        assert equal(truth, do, do) and equal(truth, seen, [dataset.label, "digit"])


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_everything(kind, monkeypatch):
    monkeypatch.setattr("datasets.mnist.morpho.cached", lambda name, parameters, build: build())
    one, again, two = opened(kind), opened(kind), opened(kind, seed=1)
    for split in SPLITS:
        a, b, c = (d.split(split) for d in (one, again, two))
        assert torch.equal(a.images, b.images) and equal(a.attributes, b.attributes)
        assert not torch.equal(a.images, c.images) and torch.equal(a.attributes["digit"], c.attributes["digit"])
    assert one.graph.fingerprint() == again.graph.fingerprint()


# ---------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("do", "words"), [
    ({"digit": 3}, "do(digit)"), ({"image": 0}, "do(image)"),
    ({"color": 1}, "'color'"),
])
def test_refused_interventions(dataset, do, words):
    with pytest.raises(SchemaError, match=naming(words)):
        dataset.true_counterfactual("test", torch.arange(2), do)


def test_refused_values_and_rows(dataset):
    name = dataset.spurious[0]
    some = dataset.split("test").attributes[name]
    for value, words in ((-1, "-1"), (float("nan"), "nan"), (some[:3], "3 2")):
        with pytest.raises(SchemaError, match=naming(name, words)):
            dataset.true_counterfactual("test", torch.arange(2), {name: value})
    with pytest.raises(SchemaError, match=naming("30..30 test")):
        dataset.true_counterfactual("test", torch.tensor([30]), {name: some[:1]})
    assert len(dataset.true_counterfactual("test", torch.tensor([]), {name: some[:1]})["image"]) == 0


@pytest.mark.parametrize("kind", data_sets(DigitSplits))
@pytest.mark.parametrize(("options", "words"), [
    ({"train_digits": -1}, "train_digits=-1"), ({"seed": -1}, "seed=-1"), ({"test_digits": "9999"}, "test_digits=9999"),
    ({"data_dir": "nowhere/at/all"}, "nowhere/at/all"), ({"strenght": 1}, "'strenght'"),
])
def test_refused_options(kind, options, words):
    with pytest.raises((SchemaError, DataError), match=naming(words)):
        opened(kind, **options).split("test")


# ---------------------------------------------------------------------------------------------------- all of MNIST
@pytest.mark.parametrize(("kind", "sizes", "right"), [
    ("coloredmnist", (50000, 10000, 10000), 1.0), ("spuriousmnist", (60000, 5000, 5000), 1.0),
    ("colourmnist", (50000, 10000, 10000), 1.0), ("photo-backgrounds", (50000, 10000, 10000), 0.9)])
def test_all_of_mnist(shared_data, kind, sizes, right):
    dataset = open_dataset(kind, {"data_dir": shared_data / "mnist"})
    assert tuple(len(dataset._digits[split][0]) for split in SPLITS) == sizes
    index = torch.arange(0, sizes[2], sizes[2] // 40)
    seen = dataset.split("test").batch(index)
    name = dataset.spurious[0]
    truth = dataset.true_counterfactual("test", index, {name: other(dataset, name, seen[name])})
    for world in (seen, truth):
        assert (dataset.measure(world["image"])[name] == world[name]).float().mean() >= right


# ---------------------------------------------------------------------------------------------------- the commands
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("colourmnist-free", "morphomnist-confounded", "photo-backgrounds-64")])
def test_commands_make_and_score_counterfactuals(kind, tmp_path):
    """One channel, two and three; 14, 28 and 32 pixels on a side: mechanisms, grid and scores."""
    from dscm.counterfactual import Options as GridOptions
    from dscm.counterfactual import main as draw_grid
    from dscm.evaluate import Options as EvaluateOptions
    from dscm.evaluate import main as evaluate
    from dscm.evaluation.config import EvaluationConfig
    from mechanisms.image.config import ImageConfig
    from mechanisms.image.fit import train_image
    from mechanisms.image.options import DEFAULTS
    from mechanisms.runs.files import read_json
    from mechanisms.training.config import RunOptions
    from pgm import options as attributes
    from pgm.fit import train_attributes

    options = tuple(f"{k}={v}" for k, v in {**KINDS[kind], **SMALL}.items())
    data, run = DataOptions(name_of(kind), option=options), RunOptions(tmp_path / "run")
    dataset = data.open()
    train_attributes(dataset, data, run, replace(attributes.DEFAULTS, steps=4, device="cpu"))
    training = replace(DEFAULTS, steps=2, batch_size=8, validation_rows=8, device="cpu")
    train_image(dataset, data, run, training, config=ImageConfig(z_dim=2, embedding=8))
    name, grid = dataset.spurious[0], tmp_path / "grid.png"
    draw_grid(GridOptions(run.run, (f"{name}~marginal",), grid, count=1, device="cpu"))
    evaluate(EvaluateOptions(run.run, tmp_path / "metrics.json", count=4, device="cpu",
                             config=replace(EvaluationConfig(), parts=("truth", "effectiveness"))))
    assert grid.stat().st_size > 1000
    scores = read_json(tmp_path / "metrics.json")["scores"]
    assert {s["intervention"] for s in scores if s["metric"] == "truth_l1"} >= {f"do({n})" for n in dataset.spurious}
