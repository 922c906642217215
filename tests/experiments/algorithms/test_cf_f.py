"""Counterfactual and factual data: the loss in full, what each setting needs, flags, resuming, and a training end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import SchemaError
from datasets.task import Sizes, task_of
from experiments.algorithms.base import cross_entropy
from experiments.algorithms.cf_f import CFFSettings, CounterfactualAndFactual, _seed
from experiments.algorithms.losses import COUNTERFACTUAL_LOSSES, counterfactual_loss
from experiments.attribution.saliency import PENALTIES, SALIENCY, penalty, saliency
from experiments.augmenters.registry import COUNTERFACTUAL, FACTUAL, augmenter
from experiments.networks.registry import NETWORKS, build_network
from experiments.networks.small import SmallCNN
from experiments.train import main
from experiments.training.options import Options, TrainingFlags
from experiments.training.plan import resolve
from experiments.training.rows import Rows
from experiments.training.run import describe
from experiments.training.trainer import Trainer
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, load
from mechanisms.training.config import RunOptions
from mechanisms.training.noise import Noise
from tests.errors import naming, says

ROWS, CLASSES = 24, 3
PLAIN = {"cf": "none", "factual": "none", "saliency": "none"}
DATA = ("--dataset", "photo-backgrounds", "--option", "train_digits=64", "--option", "valid_digits=32", "--option", "test_digits=16")


def batch_of(channels: int = 3) -> dict[str, Tensor]:
    """Rows of which every fifth has an empty mask."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(ROWS, 16, 16, dtype=torch.bool)
    masks[:, 4:9, 5:12] = torch.rand(ROWS, 5, 7, generator=generator) < 0.8
    masks[::5] = False
    return {"image": torch.rand(ROWS, channels, 16, 16, generator=generator), "label": torch.arange(ROWS) % CLASSES, "mask": masks,
            "counterfactual": torch.randint(256, (ROWS, 2, channels, 16, 16), generator=generator).to(torch.uint8),
            "relabelled": torch.randint(256, (ROWS, 2, channels, 16, 16), generator=generator).to(torch.uint8),
            "ready": torch.randint(256, (ROWS, channels, 16, 16), generator=generator).to(torch.uint8)}


def model_of(network: str = "mlp", channels: int = 3, l2: float = 0.0, **settings: object) -> CounterfactualAndFactual:
    torch.manual_seed(0)
    built = build_network(network, (channels, 16, 16), CLASSES, 12)
    return CounterfactualAndFactual(built, Sizes(CLASSES), CFFSettings(**settings), l2).train()


# ---------------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("loss", COUNTERFACTUAL_LOSSES)
def test_the_loss_is_the_papers(loss):
    """(Σ CE(x) + Σ CE(x_F) + c·Σ ℓ(x_CF)) / (n + n_F + n_CF) + λ·mean penalty, sums over rows with a foreground but the first."""
    model, batch = model_of(cf="mean", cf_loss=loss, cf_weight=0.7, factual="random", saliency_weight=3.0, l2=0.01), batch_of()
    seen = []
    outputs = model.outputs
    model.outputs = lambda images: seen.append(images) or outputs(images)
    terms = model.objective(batch, 1.0, Noise(0))
    x, factual, counterfactual = seen[0].chunk(3)
    known, labels = batch["mask"].flatten(1).any(1), batch["label"]
    assert torch.equal(x, batch["image"]) and int(known.sum()) == 19
    stays = batch["mask"][:, None].expand_as(x)
    assert torch.equal(factual[stays], x[stays]) and not torch.equal(factual, x)
    box = torch.zeros(16, 16, dtype=torch.bool)
    box[4:9, 5:12] = True
    assert torch.equal(counterfactual[known][:, :, ~box], x[known][:, :, ~box]) and (counterfactual[known][:, :, box] == 0.5).all()
    wide = [outputs(images) for images in (x, factual, counterfactual)]
    own = [cross_entropy(wide[0], labels).sum(), cross_entropy(wide[1], labels)[known].sum(),
           0.7 * counterfactual_loss(loss, wide[2], labels, CLASSES)[known].sum()]
    regions = box.expand(ROWS, -1, -1)[known]
    focus = penalty("outside", saliency("gradient", model.network, x[known], labels[known]), regions).mean()
    weights = 0.01 * sum(p.square().sum() for p in model.network.parameters())
    torch.testing.assert_close(terms["loss"], sum(own) / (24 + 19 + 19) + 3 * focus + weights)
    torch.testing.assert_close(terms["saliency"], focus)
    torch.testing.assert_close(terms["risk_factual"], own[1] / 19)


def test_nothing_asked_for_is_erm():
    model, batch = model_of(**PLAIN), batch_of()
    del batch["mask"]
    terms = model.objective(batch, 1.0, Noise(0))
    assert terms.keys() == {"loss", "risk"}
    torch.testing.assert_close(terms["loss"], F.cross_entropy(model.network(batch["image"]), batch["label"]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("setting, value", [
    *(("cf", name) for name in COUNTERFACTUAL if name != "folder"), *(("factual", name) for name in FACTUAL),
    *(("cf_loss", name) for name in COUNTERFACTUAL_LOSSES), *(("saliency_of", name) for name in SALIENCY),
    *(("saliency_mode", name) for name in PENALTIES), ("saliency", "mask")])
def test_every_setting_trains_every_network(setting, value, network, channels):
    model, batch = model_of(network, channels, **{setting: value}), batch_of(channels)
    if value == "gradcam" and network == "mlp":
        with pytest.raises(RunError, match=naming("Grad-CAM")):
            model.objective(batch, 1.0, Noise(0))
        return
    modes, before = [module.training for module in model.modules()], {n: v.clone() for n, v in model.network.named_parameters()}
    log = model.update(batch, torch.optim.SGD(model.parameters(), 0.1), 1.0, Noise(0))
    assert all(np.isfinite(list(log.values()))) and {"risk", "risk_factual", "risk_counterfactual", "saliency"} < log.keys()
    assert [module.training for module in model.modules()] == modes  # attacks and saliency look at the network in eval mode
    assert all(p.isfinite().all() and not torch.equal(p, before[n]) for n, p in model.network.named_parameters() if "bias" not in n)
    assert model.predict(batch["image"]).shape == (ROWS, CLASSES)


def test_noise_alone_decides_what_is_made():
    model, batch = model_of(factual="mrand", cf="random"), batch_of()
    first, again, other = (model.objective(batch, 1.0, Noise(seed))["loss"] for seed in (0, 0, 1))
    torch.manual_seed(5)
    assert torch.equal(first, again) and torch.equal(first, model.objective(batch, 1.0, Noise(0))["loss"]) and not torch.equal(first, other)
    noise = Noise(0)
    losses = [model.objective(batch, 1.0, noise)["loss"] for _ in range(3)]
    assert len({loss.item() for loss in losses}) == 3


def test_a_models_counterfactuals_are_factual_data():
    """Trained with their label, of one that is drawn for each row; without masks none are asked for."""
    model, batch = model_of(**{**PLAIN, "factual": "dscm"}), batch_of()
    del batch["mask"]
    batch["counterfactual"] = batch["counterfactual"][:, :1]
    expected = [cross_entropy(model.network(x), batch["label"]) for x in (batch["image"], batch["counterfactual"][:, 0].float() / 255)]
    torch.testing.assert_close(model.objective(batch, 1.0, Noise(0))["loss"], torch.cat(expected).mean())


def test_the_penalty_anneals():
    model, batch = model_of(cf="mean", factual="none", saliency_weight=8.0, saliency_anneal=0.5), batch_of()
    assert [model.weight(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [0.0, 4.0, 8.0, 8.0]
    early, late = (model.objective(batch, progress, Noise(0)) for progress in (0.0, 0.25))
    assert "saliency" not in early
    torch.testing.assert_close(late["loss"], early["loss"] + 4 * late["saliency"])


@pytest.mark.parametrize("mode, weight", [("outside", 1000.0), ("cosine", 10.0), ("f1", 10.0)])
def test_the_penalty_makes_the_network_look_inside(mode, weight):
    """The share of the squared gradient that is in the box, of an image with a known foreground; by a penalty, twice ERM's at least."""
    shares = []
    for asked in ({**PLAIN}, {**PLAIN, "saliency": "bbox", "saliency_mode": mode, "saliency_weight": weight}):
        model, batch = model_of(**asked), batch_of()
        optimizer, noise = torch.optim.Adam(model.parameters(), 0.003), Noise(0)
        for _ in range(25):
            model.update(batch, optimizer, 1.0, noise)
        found, known = saliency("gradient", model.network, batch["image"], batch["label"]).detach(), batch["mask"].flatten(1).any(1)
        inside = (found.square() * model.region(batch["mask"])[:, None]).flatten(1).sum(1)
        shares.append(float((inside / found.square().flatten(1).sum(1))[known].mean()))
    assert shares[1] > 2 * shares[0]


def test_classes_of_their_own_are_no_part_of_predictions():
    model, batch = model_of("smallcnn", cf_loss="double"), batch_of()
    assert model.outputs(batch["image"]).shape == (ROWS, 2 * CLASSES)
    model.train()(batch, Noise(0), 1.0)["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.without.parameters())
    assert not any("without" in name for name in model.network.state_dict())
    torch.testing.assert_close(model.predict(batch["image"]), model.network.eval()(batch["image"]))


def test_attacks_and_the_penalty_of_weights_mind_classes_of_their_own():
    model, batch = model_of("smallcnn", l2=0.1, factual="fgsm", cf="mean", cf_loss="double", saliency="none"), batch_of()
    torch.nn.init.normal_(model.without.weight)
    weights = sum(p.square().sum() for p in model.parameters())
    torch.testing.assert_close(model.penalty_of_weights(), 0.1 * weights)
    known = batch["mask"].flatten(1).any(1)
    (factual, _), _ = model.augmented(batch, batch["mask"], known, Noise(0))
    assert all(module.training for module in model.network.modules())
    model.network.eval()
    same = []
    for width in (2 * CLASSES, CLASSES):
        generator = torch.Generator().manual_seed(_seed(Noise(0)(ROWS, 2)))
        attacked = augmenter("factual", "fgsm")(batch["image"], batch["mask"], batch["label"], generator,
                                                network=lambda x, k=width: model.outputs(x)[:, :k])
        same.append(torch.equal(attacked, factual))
    assert same == [True, False]


def test_saliency_that_would_be_wrong_is_refused():
    network = build_network("mobilenet_v3_small", (3, 32, 32), CLASSES)
    with pytest.raises(RunError, match=naming("mobilenet_v3_small saliency_of=gradient")):
        CounterfactualAndFactual(network, Sizes(CLASSES), CFFSettings(saliency_of="deeplift"))
    CounterfactualAndFactual(network, Sizes(CLASSES), CFFSettings(saliency_of="deeplift", saliency="none"))


# ---------------------------------------------------------------------------------------------------- needs and settings
@pytest.mark.parametrize("settings, needs", [
    ({}, {"masks"}), (PLAIN, set()), ({**PLAIN, "factual": "dscm"}, {"counterfactuals"}), ({**PLAIN, "cf": "mean"}, {"masks"}),
    ({"factual": "dscm"}, {"masks", "counterfactuals"}), ({**PLAIN, "cf": "dscm"}, {"relabelled"}),
     ({**PLAIN, "saliency": "mask", "saliency_of": "gradcam"}, {"masks", "camera"})])
def test_settings_decide_what_is_needed(settings, needs):
    assert CounterfactualAndFactual.needs_of(CFFSettings(**settings)) == needs


@pytest.mark.parametrize("setting, message", [
    ("cf=tiles", "'tiles' mean random shuffle tile none"),
    ("factual=tile", "'tile' random shuffle mrand fgsm pgd dscm none"),
    ("cf_loss=sum", "cf_loss=sum negative uniform uniform_others double"), ("cf_weight=-1", "cf_weight=-1.0"),
    ("saliency=box", "saliency=box bbox mask none"), ("saliency_of=lime", "saliency_of=lime gradient logits_sum rrr"),
    ("saliency_mode=inside", "saliency_mode=inside outside cosine f1"), ("saliency_weight=nan", "saliency_weight=nan"),
    ("saliency_anneal=2", "saliency_anneal=2.0 [0, 1]"), ("cf_folder=made", "cf_folder=made cf=folder"),
    ("cf=folder", "cf_folder= --set cf-f.cf_folder=DIR")])
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(UserError, match=naming(f"cf-f {message}")):
        resolve("cf-f", open_dataset("photo-backgrounds"), settings=[setting])


def options(tmp_path: Path, *more: str) -> list[str]:
    return [*DATA, "--run", str(tmp_path / "run"), "--seeds", "1", "--steps", "4", "--batch-size", "16", "--validations", "2",
            "--device", "cpu", *more]


@pytest.mark.parametrize("arguments, message", [
    (["--algorithm", "erm", "--cf", "tile"], "--cf tile erm --algorithm cf-f"),
    (["--algorithm", "erm", "--saliency-weight", "1"], "--saliency-weight 1.0 erm --algorithm cf-f"),
    (["--algorithm", "erm,cf-f", "--factual", "tile"], "cf-f 'tile'"),
    (["--algorithm", "cf-f", "--factual", "dscm"], "--algorithm cf-f --model RUN"),
    (["--algorithm", "cf-f", "--cf", "dscm", "--truth"],
     "--cf dscm photo-backgrounds do(label) background "
     "--factual dscm --cf none --saliency none --model RUN"),
    (["--algorithm", "cf-f", "--network", "mlp", "--set", "saliency_of=gradcam"], "--network mlp"),
    (["--algorithm", "cf-f", "--network", "mlp", "--set", "saliency_of=logits_sum"], "--network mlp 0"),
    (["--algorithm", "cf-f", "--cf", "folder", "--set", "cf_folder=nowhere"], "nowhere/train")])
def test_bad_flags_are_errors_before_anything_is_trained(tmp_path, arguments, message, capsys):
    with pytest.raises(SystemExit):
        run_command(Options, main, options(tmp_path, *arguments))
    assert says(capsys.readouterr().err, message) and not (tmp_path / "run").exists()


def test_data_without_masks(tmp_path):
    rows = Rows(task_of(open_dataset("colourmnist", {"train_digits": 64, "valid_digits": 32, "test_digits": 16})))
    with pytest.raises(SchemaError, match=naming("--algorithm cf-f colourmnist")):
        Trainer(rows, resolve("cf-f", rows.task.dataset), RunOptions(tmp_path), lambda name: resolve(name, rows.task.dataset)).check()


def test_masks_that_say_nothing_are_counted_before_training(tmp_path, capsys):
    """Once, of the rows that are trained on."""
    rows = Rows(task_of(open_dataset("photo-backgrounds", {"train_digits": 64, "valid_digits": 32, "test_digits": 16})))
    rows.masks[:3], rows.masks[3:5] = False, True
    for _ in range(2):
        rows.check(CounterfactualAndFactual.needs, "cf-f", "train", SmallCNN)
    told = capsys.readouterr().err
    assert told.count("warning: ") == 1
    assert says(told, "--algorithm cf-f 3 2")
    other = Rows(task_of(open_dataset("photo-backgrounds", {"train_digits": 64, "valid_digits": 32, "test_digits": 16})))
    other.check(CounterfactualAndFactual.needs, "cf-f", "train", SmallCNN)
    assert not capsys.readouterr().err


def test_flags_are_settings_and_set_wins():
    asked = Options(cf="mean", factual="none", saliency="mask", saliency_weight=2.5, set=("cf-f.cf=shuffle", "cf_weight=3"),
                    algorithm="cf-f")
    assert asked.settings == ("cf=mean", "factual=none", "saliency=mask", "saliency_weight=2.5", "cf-f.cf=shuffle", "cf_weight=3")
    dataset = open_dataset("photo-backgrounds")
    expected = CFFSettings(cf="shuffle", cf_weight=3.0, factual="none", saliency="mask", saliency_weight=2.5)
    assert resolve("cf-f", dataset, settings=asked.settings).settings == expected
    assert "needs masks" in describe(dataset, ["cf-f"], settings=asked.settings)
    assert "needs nothing but labels" in describe(dataset, ["cf-f"], settings=replace(asked, saliency="none", set=("cf=none",)).settings)


# ---------------------------------------------------------------------------------------------------- trainings
def test_end_to_end_from_the_command_line(tmp_path, capsys):
    arguments = ["--algorithm", "erm,cf-f", "--cf", "tile", "--factual", "shuffle", "--saliency", "bbox", "--saliency-weight", "10"]
    run_command(Options, main, options(tmp_path, *arguments))
    told = capsys.readouterr().out
    assert "saliency bbox (flag), saliency-of gradient" in told and "| cf-f " in told and "| erm " in told
    kept = load(tmp_path / "run" / "classifiers" / "cf-f" / "seed-0" / "mechanism.pt", "classifier")
    assert kept["settings"]["cf"] == "tile" and kept["settings"]["saliency_weight"] == 10.0


def test_a_models_counterfactuals_from_the_command_line(tmp_path, capsys):
    asked = ("--algorithm", "cf-f", "--truth", "--factual", "dscm", "--cf", "none", "--saliency", "none")
    run_command(Options, main, options(tmp_path, *asked))
    assert "| cf-f " in capsys.readouterr().out


BARS = '''
import torch

from datasets import CausalDataset, Variable


class Bars(CausalDataset):
    """A bar that lies or stands, dark or light; both are known to do what they do."""

    label = "stands"
    spurious = ("light",)
    true_images_under = ("stands", "light")
    variables = (Variable("stands", "binary", classes=("no", "yes")), Variable("light", "binary", ("stands",), classes=("no", "yes")),
                 Variable("image", "image", ("stands", "light"), shape=(1, 16, 16)))

    def load(self, split):
        u = torch.rand(64, 2, generator=torch.Generator().manual_seed(len(split)))
        stands = (u[:, 0] < 0.5).long()
        return self.drawn(stands, torch.where(u[:, 1] < 0.9, stands, 1 - stands))

    def true_counterfactual(self, split, index, do):
        _, observed = self.intervened(split, index, do)
        return self.drawn(observed["stands"], observed["light"])

    def drawn(self, stands, light):
        image = torch.full((len(stands), 1, 16, 16), 0.2) + 0.4 * light[:, None, None, None]
        image[stands == 1, :, :, 7:9] = 1.0
        image[stands == 0, :, 7:9] = 1.0
        return {"stands": stands, "light": light, "image": image}
'''


def test_images_of_another_class_from_the_command_line(tmp_path, capsys):
    """What shows the class changes, the rest stays; without a source they are refused."""
    (tmp_path / "bars.py").write_text(BARS)
    asked = ["--dataset", str(tmp_path / "bars.py"), "--network", "mlp", "--hidden", "8"]
    asked += options(tmp_path, "--algorithm", "cf-f", "--cf", "dscm", "--factual", "none", "--saliency", "none")[len(DATA):]
    with pytest.raises(SystemExit):
        run_command(Options, main, asked)
    assert says(capsys.readouterr().err, "--model RUN")
    run_command(Options, main, [*asked, "--truth"])
    assert "| cf-f " in capsys.readouterr().out
    kept = load(next((tmp_path / "run" / "classifiers").glob("relabelled-*.pt")), "counterfactuals")
    rows = open_dataset(str(tmp_path / "bars.py")).split("train")
    assert kept["key"]["names"] == ["stands", "light"] and kept["images"].shape == (64, 1, 1, 16, 16)
    made, seen = kept["images"][:, 0], rows.images
    assert torch.equal(made, seen.transpose(2, 3)) and not torch.equal(made, seen)  # a bar that lies is one that stands, turned


def test_ready_images_from_a_folder(tmp_path):
    from PIL import Image

    folder = tmp_path / "in-painted" / "train"
    dataset = open_dataset("photo-backgrounds", {"train_digits": 64, "valid_digits": 32, "test_digits": 16})
    folder.mkdir(parents=True)
    for row in range(len(dataset.split("train"))):
        Image.new("RGB", (32, 32), (row, 7, 9)).save(folder / f"{row:04d}.png")
    rows = Rows(task_of(dataset))
    settings = ["cf=folder", f"cf_folder={folder.parent}", "factual=none", "saliency=none"]
    plan = resolve("cf-f", dataset, TrainingFlags(steps=2, batch_size=16, device="cpu"), settings)
    trainer = Trainer(rows, plan, RunOptions(tmp_path / "run"), lambda name: resolve(name, dataset))
    trainer.check()
    trainer.learn()
    batch, row = trainer.train.batch([5, 9]), torch.tensor([5, 9])
    assert batch["ready"].shape == (2, 3, 32, 32) and torch.equal(batch["ready"][:, 0, 0, 0], row.to(torch.uint8))
    made = augmenter("counterfactual", "folder")(batch["image"], batch["mask"], batch["label"], torch.Generator(), ready=batch["ready"])
    assert torch.equal(made[:, 0][batch["mask"]], (row / 255).repeat_interleave(batch["mask"].flatten(1).sum(1)))


def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, monkeypatch):
    """Of factual and counterfactual images at random, an attack, classes of their own and an annealed penalty; batch norm too."""
    from mechanisms.training import loop as training

    dataset = open_dataset("photo-backgrounds", {"train_digits": 48, "valid_digits": 16, "test_digits": 16})
    rows = Rows(task_of(dataset))
    settings = ["cf=random", "cf_loss=double", "factual=fgsm", "saliency_anneal=0.5"]
    flags = TrainingFlags(network="smallcnn", hidden=8, steps=5, batch_size=16, validations=1, device="cpu", checkpoint_seconds=0.0)

    def learn(run: Path, resume: bool = False) -> dict[str, Tensor]:
        plan = resolve("cf-f", dataset, flags, settings)
        Trainer(rows, plan, RunOptions(run, resume=resume), lambda name: resolve(name, dataset)).learn()
        return load(run / "classifiers" / "cf-f" / "seed-0" / "checkpoint.pt", "training")["model"]

    whole = learn(tmp_path / "whole")
    update, count = training.update, [0]

    def killed(*arguments: object) -> float:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(training, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "parts")
    monkeypatch.setattr(training, "update", update)
    parts = learn(tmp_path / "parts", resume=True)
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())
