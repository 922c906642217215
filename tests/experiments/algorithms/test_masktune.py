"""MaskTune: masks and their laws, both stages from one checkpoint, iterations, resuming; selective classification."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.base import Split
from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from datasets.task import task_of
from experiments.algorithms.masks import Masks, above, find_masks, load_masks, masked, save_masks
from experiments.algorithms.masktune import MaskTune, MaskTuneSettings, last_learning_rate, next_masks, stored_masks
from experiments.attribution.xgradcam import xgradcam
from experiments.metrics.selective import agreed, coverage_table, threshold_for
from experiments.networks.registry import NETWORKS
from experiments.networks.small import MLP, SmallCNN
from experiments.training.options import TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.trainer import Trainer
from mechanisms.runs.files import MetricsLog, RunError, load, save, weights_fingerprint
from mechanisms.training import loop as training
from mechanisms.training.config import RunOptions
from mechanisms.training.noise import seeded
from mechanisms.training.state import CHECKPOINT, METRICS, WEIGHTS
from tests.errors import naming, says

FLAGS = TrainingFlags(epochs=1, batch_size=32, hidden=8, validations=2, validation_rows=32, device="cpu", precision="fp32",
                      optimizer="sgd", learning_rate=0.05, schedule="step")


@pytest.fixture(scope="module")
def rows():
    return Rows(task_of(open_dataset("spuriousmnist", {"train_digits": 160, "valid_digits": 32, "test_digits": 32})))


class Spy(Trainer):
    """Keeps what each fit began with."""

    def fit(self, model, stage="", train=None, valid=None, **changes):
        weights = {name: value.clone() for name, value in model.network.state_dict().items()}
        self.begun = [*getattr(self, "begun", []), (weights, train, changes)]
        return super().fit(model, stage, train, valid, **changes)


def make(rows, run, *settings, flags=FLAGS, kind=Spy, **options):
    def plan(name):
        return resolve(name, rows.task.dataset, flags, settings)

    return kind(rows, plan("masktune"), RunOptions(run, **options), plan)


@pytest.fixture(scope="module")
def learned(rows, tmp_path_factory):
    """A run with both stages; read it, do not train into it."""
    trainer = make(rows, tmp_path_factory.mktemp("masktune"))
    return trainer, trainer.learn()


def folders(trainer):
    return trainer.folder.parent.parent / "erm" / trainer.folder.name, trainer.folder


def weights(folder):
    return load(folder / WEIGHTS)["weights"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ---------------------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("sigmas", [0.0, 1.0, 2.0])
def test_the_threshold_is_that_of_the_paper(sigmas):
    maps = (torch.rand(20, 9, 9, generator=seeded(0)) - 0.4).relu() ** 3
    values = np.where(maps.numpy() > 0, maps.numpy(), np.nan)
    threshold = np.nanmean(values, (1, 2)) + sigmas * np.nanstd(values, (1, 2))
    assert np.array_equal(above(maps, sigmas).numpy(), maps.numpy() > threshold[:, None, None])


def test_a_map_of_zeros_masks_nothing_and_is_reported():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not above(torch.zeros(3, 5, 5)).any()
    masks = Masks(torch.zeros(3, 5, 5, dtype=torch.bool), torch.tensor([True, False, True]))
    assert "2 of 3 images are 0 everywhere" in masks.warning() and "3 images keep all" in masks.report()
    assert Masks(masks.dropped, torch.zeros(3, dtype=torch.bool)).warning() == ""


@pytest.fixture(scope="module")
def some():
    dropped = torch.rand(300, 12, 10, generator=seeded(1)) < torch.linspace(0, 1, 300)[:, None, None]
    return Masks(dropped, dropped.flatten(1).sum(1) == 0)


def test_random_masks_have_equal_counts_at_other_places(some):
    scattered = some.scattered(seeded(2))
    assert torch.equal(scattered.counts, some.counts) and not torch.equal(scattered.dropped, some.dropped)
    assert torch.equal(scattered.dropped, some.scattered(seeded(2)).dropped)
    half = scattered.dropped[145:155].float().mean(0)  # every place is as likely
    assert 0 < half.min() and half.max() < 1 and abs(float(half[:, :5].mean()) - 0.5) < 0.1


def test_accumulated_masks_grow(some):
    both = some.with_earlier(some.scattered(seeded(2)))
    assert torch.equal(both.dropped | some.dropped, both.dropped) and both.counts.sum() > some.counts.sum()


def test_masks_come_back_from_disk(some, tmp_path):
    path, origin = tmp_path / "masks.pt", {"weights": "abc", "rows": 300}
    assert load_masks(path, origin) is None
    save_masks(path, some, origin)
    back = load_masks(path, origin)
    assert torch.equal(back.dropped, some.dropped) and torch.equal(back.blank, some.blank)
    assert load_masks(path, {**origin, "weights": "abd"}) is None and load_masks(path) is not None
    assert path.stat().st_size < some.dropped.numel() / 8 + 8000  # one bit a pixel
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(RunError, match=naming(path)):
        load_masks(path, origin)


class FromDisk:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].numpy()


def test_masked_images_lose_all_channels_there_and_nothing_elsewhere(some):
    images = torch.randint(1, 256, (300, 3, 12, 10), generator=seeded(3)).to(torch.uint8)
    split = Split("train", images, {"label": torch.arange(300)})
    hidden = masked(split, some)
    there = some.dropped[:, None].expand_as(images)
    assert (hidden.images[there] == 0).all() and torch.equal(hidden.images[~there], images[~there])
    assert hidden.attributes is split.attributes
    lazy = masked(Split("train", FromDisk(images), split.attributes), some)
    assert torch.equal(lazy.batch([5, 299, 7])["image"], hidden.batch([5, 299, 7])["image"])
    with pytest.raises(RunError, match=naming("299 300")):
        masked(split, Masks(some.dropped[1:], some.blank[1:]))


def test_masks_are_of_the_predicted_class_whatever_the_mode_and_batch(rows):
    torch.manual_seed(0)
    network = SmallCNN((3, 28, 28), 2, 8).train()
    found = find_masks(network, network.cam_layer, rows.train)
    assert network.training and all(m.training for m in network.modules())
    index = torch.arange(140, 150)
    maps = xgradcam(network, rows.train.batch(index)["image"], network.cam_layer)
    assert (found.dropped[index] != above(maps)).float().mean() < 1e-3  # rounding


def test_fingerprints_see_every_weight_and_buffer():
    torch.manual_seed(0)
    network = SmallCNN((3, 28, 28), 2, 8)
    seen = {weights_fingerprint(network)}
    for value in network.state_dict().values():
        first = (0,) * value.ndim
        value[first] += 1
        seen.add(weights_fingerprint(network))
        value[first] -= 1
    assert len(seen) == 1 + len(network.state_dict())


# ---------------------------------------------------------------------------------------------------- two stages
def test_fine_tuning_begins_with_the_weights_that_the_masks_come_from(learned):
    trainer, model = learned
    erm, folder = folders(trainer)
    (begun, train, changes), = trainer.begun
    assert same(begun, weights(erm))  # bit for bit, statistics of batch norm included
    network = SmallCNN((3, 28, 28), 2, 8)
    network.load_state_dict(weights(erm))
    origin = load(folder / "masks-1.pt")["origin"]
    assert origin["weights"] == weights_fingerprint(network) == load(folder / WEIGHTS)["begun_from"] == model.begun_from
    masks = load_masks(folder / "masks-1.pt", origin)
    assert torch.equal(masks.dropped, find_masks(network, network.cam_layer, trainer.train).dropped)
    assert torch.equal(train.images, masked(trainer.train, masks).images) and masks.counts.sum() > 0


def test_fine_tuning_is_one_epoch_in_training_mode_at_the_last_learning_rate(learned):
    trainer, model = learned
    erm, folder = folders(trainer)
    before, after = weights(erm), weights(folder)
    assert load(folder / WEIGHTS)["step"] == 5 and trainer.begun[0][2]["epochs"] == 1  # 160 images in batches of 32
    moved = [name for name in after if "num_batches_tracked" in name]
    assert moved and all(after[name] == before[name] + 5 for name in moved)
    assert all(not torch.equal(after[name], before[name]) for name in after if "running" in name or "weight" in name)
    rates = {row["learning_rate"] for row in MetricsLog.read(folder / METRICS)}
    assert rates == {last_learning_rate(trainer)} and math.isclose(*rates, 0.05 * 0.01)
    assert not model.training and not any(m.training for m in model.network.modules())


def test_a_learning_rate_may_be_set_and_a_negligible_one_is_warned_about(learned, rows, tmp_path, capsys):
    trainer, _ = learned
    state = load(folders(trainer)[0] / CHECKPOINT)
    state["optimizer"]["param_groups"][0]["lr"] = 1e-9
    other = make(rows, tmp_path)
    folders(other)[0].mkdir(parents=True)
    save(folders(other)[0] / CHECKPOINT, state)
    assert last_learning_rate(other) == 1e-9 and "tune_learning_rate" in capsys.readouterr().err


def test_all_is_only_read_the_second_time(learned, rows):
    trainer, model = learned
    _, folder = folders(trainer)

    def files():
        every = (path for path in folder.parent.parent.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in every}

    then = files()
    again = make(rows, trainer.options.run).learn()
    assert same(again.network.state_dict(), model.network.state_dict())
    assert files() == then and {folder / WEIGHTS, folder / "masks-1.pt", folders(trainer)[0] / CHECKPOINT} <= then.keys()


def test_resuming_gives_what_an_uninterrupted_run_gives(learned, rows, tmp_path, monkeypatch):
    flags = replace(FLAGS, checkpoint_seconds=0)
    trainer, counter, genuine = make(rows, tmp_path, flags=flags), [], training.update

    def killed(*given):
        counter.append(1)
        if len(counter) == 5 + 3:  # in the third update of fine-tuning
            raise KeyboardInterrupt
        return genuine(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.learn()
    masks = (trainer.folder / "masks-1.pt").read_bytes()
    assert 0 < load(trainer.folder / CHECKPOINT)["position"]["step"] < 5
    resumed = make(rows, tmp_path, flags=flags, resume=True).learn()
    assert same(resumed.network.state_dict(), learned[1].network.state_dict())
    assert masks == (trainer.folder / "masks-1.pt").read_bytes()


def test_masks_of_another_checkpoint_are_made_anew(learned, rows, tmp_path, capsys):
    _, model = learned
    trainer = make(rows, tmp_path)
    first = stored_masks(trainer, model.network, 1, None)
    assert "%" in capsys.readouterr().err
    assert torch.equal(stored_masks(trainer, model.network, 1, None).dropped, first.dropped) and not capsys.readouterr().err
    other = SmallCNN((3, 28, 28), 2, 8)
    second = stored_masks(trainer, other, 1, None)
    assert load(trainer.folder / "masks-1.pt")["origin"]["weights"] == weights_fingerprint(other)
    assert not torch.equal(first.dropped, second.dropped)
    torch.nn.init.zeros_(other.head.weight)
    assert stored_masks(trainer, other, 1, None).blank.all() and says(capsys.readouterr().err, "warning: 160")


def test_a_masktune_of_another_erm_is_refused(rows, tmp_path):
    trainer = make(rows, tmp_path)
    trainer.learn()
    path = folders(trainer)[0] / WEIGHTS
    state = load(path)
    state["weights"]["head.bias"] += 1
    save(path, state)
    with pytest.raises(RunError, match=naming("begun_from base")):
        make(rows, tmp_path).learn()


# ---------------------------------------------------------------------------------------------------- options
def test_iterations_take_masks_of_the_newest_network(rows, tmp_path):
    trainer = make(rows, tmp_path, "iterations=2", "accumulate=true")
    trainer.learn()
    first, second = (load_masks(trainer.folder / f"masks-{k}.pt") for k in (1, 2))
    assert (second.dropped | first.dropped == second.dropped).all() and second.counts.sum() > first.counts.sum()
    network = SmallCNN((3, 28, 28), 2, 8)
    network.load_state_dict(weights(trainer.folder / "iteration-1"))
    assert load(trainer.folder / "masks-2.pt")["origin"]["weights"] == weights_fingerprint(network)
    assert same(trainer.begun[1][0], weights(trainer.folder / "iteration-1"))
    first_stage, last = load(trainer.folder / "iteration-1" / WEIGHTS), load(trainer.folder / WEIGHTS)
    assert first_stage["base"] == first_stage["begun_from"] == last["base"] != last["begun_from"] == weights_fingerprint(network)
    alone = next_masks(network, trainer.train, MaskTuneSettings(iterations=2), 0, 2, first)
    assert torch.equal(alone.dropped, find_masks(network, network.cam_layer, trainer.train).dropped)  # without accumulating


def test_random_masks_drop_as_much(learned, rows):
    trainer, model = learned
    found = next_masks(model.network, trainer.train, MaskTuneSettings(), 0, 1, None)
    random = next_masks(model.network, trainer.train, MaskTuneSettings(random_masks=True), 0, 1, None)
    assert torch.equal(random.counts, found.counts) and not torch.equal(random.dropped, found.dropped)


@pytest.mark.parametrize("setting", ["sigmas=-1", "iterations=0", "tune_epochs=0", "tune_learning_rate=-0.1"])
def test_settings_that_make_no_sense(rows, setting):
    with pytest.raises(UserError, match=naming(f"masktune {setting.partition('=')[0]}=")):
        resolve("masktune", rows.task.dataset, FLAGS, [setting])


def test_networks_without_maps_are_refused_before_training(rows, tmp_path):
    with pytest.raises(RunError, match=naming("--network smallcnn")):
        rows.check(MaskTune.needs, "masktune", "train", NETWORKS["mlp"])
    trainer = make(rows, tmp_path)
    mixed = Trainer(rows, trainer.plan, trainer.options, lambda name: resolve(name, rows.task.dataset, replace(FLAGS, network=MLP.name)))
    with pytest.raises(RunError, match=naming("erm mlp")):
        mixed.learn()


# ---------------------------------------------------------------------------------------------------- selective classification
def test_agreement_of_two_networks():
    before, after = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    p, q = (np.exp(v.double().numpy()) / np.exp(v.double().numpy()).sum() for v in (before, after))
    expected = np.exp(p * q) / np.exp(p * q).sum()
    np.testing.assert_allclose(agreed(before, after).numpy(), expected, rtol=1e-12)
    assert torch.equal(agreed(before, after), agreed(after, before))
    sure = agreed(torch.tensor([[20.0, 0.0], [25.0, 0.0]]), torch.tensor([[20.0, 0.0], [25.0, 0.0]]))
    assert sure[1, 0] > sure[0, 0]  # single precision would not tell these apart


@pytest.mark.parametrize("coverage, expected", [(0.1, 1.0), (0.25, 0.8), (0.3, 0.8), (0.5, 0.6), (0.99, 0.1), (1.0, 0.0)])
def test_thresholds_cover_as_many_validation_images_as_wanted(coverage, expected):
    confidence = torch.tensor([0.1, 0.9, 0.3, 1.0, 0.6, 0.2, 0.5, 0.8, 0.4, 0.7])  # 0.1, 0.2 … 1.0
    threshold = threshold_for(confidence, coverage)
    assert threshold == pytest.approx(expected)
    assert float((confidence >= threshold).float().mean()) >= coverage


def test_coverage_and_accuracy_in_closed_form():
    def sure(top, which):
        return torch.stack([torch.where(which == k, top, 1 - top) for k in (0, 1)], 1)

    top = torch.linspace(0.55, 0.95, 9).double()
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0])
    wrong = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])  # the least sure three
    test = sure(top, labels ^ wrong)
    full, six, two = coverage_table(test, test, labels, [1.0, 6 / 9, 2 / 9])
    assert (full.answered, full.accuracy) == (1.0, pytest.approx(6 / 9)) and full.balanced == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert full.error == pytest.approx(math.sqrt(6 / 9 * 3 / 9 / 8))
    assert six.answered == pytest.approx(6 / 9) and six.accuracy == six.balanced == 1.0 and six.error == 0.0
    assert two.answered == pytest.approx(2 / 9) and two.accuracy == 1.0
    nobody = coverage_table(torch.tensor([[0.0, 1.0]]), test, labels, [0.5])[0]
    assert (nobody.answered, nobody.accuracy, nobody.error, nobody.balanced) == (0.0, None, None, None)
    one_class = coverage_table(test, test, labels, [1 / 9])[0]
    assert one_class.accuracy == 1.0 and one_class.balanced is None


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1, math.nan])
def test_coverages_that_make_no_sense(coverage):
    with pytest.raises(SchemaError, match=naming(f"{coverage:g}")):
        threshold_for(torch.rand(5), coverage)
    with pytest.raises(SchemaError, match=naming("validation")):
        threshold_for(torch.rand(0), 0.5)
