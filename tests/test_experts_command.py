"""``python -m mechanisms.experts`` end to end on a few digits: training, resuming, pictures, application, transfer, refusals."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.base import Split
from datasets.registry import open_dataset
from datasets.unpaired import unpaired
from mechanisms import Experts
from mechanisms.checkpoint import MetricsLog, RunError, load, read_json
from mechanisms.command import run_command
from mechanisms.experts import classifier
from mechanisms.experts.__main__ import main
from mechanisms.experts.competition import Competition
from mechanisms.experts.data import unlabelled
from mechanisms.experts.options import DEFAULTS, ExpertsConfig, Options
from mechanisms.options import RunOptions, TrainingConfig
from mechanisms.training import fit

DIGITS = ["--option", "train_digits=60", "--option", "valid_digits=20", "--option", "test_digits=20"]
SMALL = ["--width", "4", "--reach", "2", "--discriminator-width", "4", "--latent", "4", "--batch-size", "8", "--validations", "2",
         "--device", "cpu"]


def command(run: Path, *arguments: str) -> None:
    run_command(Options, main, ["--run", str(run), *SMALL, *arguments])


def train(run: Path, *arguments: str, steps: int = 6) -> None:
    command(run, *DIGITS, "--transforms", "right,invert", "--experts", "2", "--steps", str(steps), *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, session_cache) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "SETTINGS", TrainingConfig(steps=3, batch_size=8, precision="fp32", validations=1))
        run = tmp_path_factory.mktemp("experts") / "run"
        train(run, "--seeds", "2")
    return run


def refused(capsys, *words: str) -> None:
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error, error


# ---------------------------------------------------------------------------------------------------- training
def test_a_run_holds_all_that_was_promised(trained):
    for seed in (0, 1):
        folder = trained / "experts" / f"seed{seed}"
        for name in ("grid.png", "confusion.png", "curves.png"):
            with Image.open(folder / name) as image:
                assert image.width > 200 and np.asarray(image.convert("L")).std() > 5
        row = MetricsLog.read(folder / "metrics.jsonl")[-1]
        assert row["step"] == 6 and {"won_0", "loss_1", "score_1", "discriminator"} <= set(row["valid"])
        assert row["valid"]["won_0"] + row["valid"]["won_1"] == pytest.approx(1)
    found = read_json(trained / "experts" / "metrics.json")
    assert set(found["seeds"]) == {"0", "1"} and found["over_seeds"]["hungarian"]["error"] is not None
    assert np.sum(found["seeds"]["0"]["confusion"]) == 20 and found["over_seeds"]["collapsed"]["of"] == 2
    assert {"accuracy_clean", "accuracy_restored", "error_restored"} <= set(found["over_seeds"])
    assert (trained / "experts" / "metrics.md").read_text().startswith("| figure ")


def test_training_sees_no_attribute(trained):
    rows = unlabelled(unpaired(open_dataset("transformed-mnist", {"train_digits": 20, "valid_digits": 20, "test_digits": 20})), "train")
    assert set(rows.attributes) == {"canonical"} and set(rows.batch([0, 3])) == {"canonical", "image"}
    assert rows.batch([0, 13])["canonical"].shape == (2, 1, 32, 32)


def test_in_python(trained):
    model = Experts.load(trained, seed=1)
    made, winner, scores = model.invert(torch.rand(5, 1, 32, 32))
    assert made.shape == (5, 1, 32, 32) and scores.shape == (5, 2) and torch.equal(winner, scores.argmax(1))
    again = Experts.load(trained, seed=1).invert(torch.zeros(1, 1, 32, 32))
    assert torch.equal(again.scores, model.invert(torch.zeros(1, 1, 32, 32)).scores)
    assert load(trained / "experts" / "seed0" / "mechanism.pt", "experts")["shape"] == [1, 32, 32]


@pytest.mark.parametrize("expert", ["residual", "cnn", "vae"])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, expert):
    """Bit for bit, with everything against collapse switched on."""
    dataset = unpaired(open_dataset("transformed-mnist", {"transforms": "right,invert", "train_digits": 24, "valid_digits": 20}))
    rows = unlabelled(dataset, "train")
    config = ExpertsConfig(experts=2, expert=expert, width=4, reach=2, latent=4, discriminator_width=4, temperature=0.3, reseed=1.0,
                           spectral=True, identity_share=0.5)
    training = TrainingConfig(steps=6, batch_size=6, optimizer="adam", device="cpu", precision="fp32", validations=2, validation_rows=6)

    class Interrupted(Competition):
        calls = 0

        def forward(self, *given):
            if self.training:
                self.calls += 1
                if self.calls == 4:
                    raise KeyboardInterrupt
            return super().forward(*given)

    def run(name: str, kind: type[Competition], options: RunOptions, **changes: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = Experts((1, 32, 32), config)
        settings = TrainingConfig(**{**vars(training), **changes})
        return fit(kind(model), rows, rows, settings, tmp_path / name, model.describe(), options, kept=model).state_dict()

    whole = run("whole", Competition, RunOptions())
    with pytest.raises(KeyboardInterrupt):
        run("parts", Interrupted, RunOptions(), checkpoint_seconds=0.0)  # a checkpoint before every update
    parts = run("parts", Competition, RunOptions(resume=True), checkpoint_seconds=0.0)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_is_read_again_and_not_overwritten(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "experts" / "seed0" / "mechanism.pt").read_bytes()
    train(run, "--resume")
    assert (run / "experts" / "seed0" / "mechanism.pt").read_bytes() == before
    with pytest.raises(SystemExit):
        train(run)
    refused(capsys, "already holds a training", "--resume")
    with pytest.raises(SystemExit):
        command(run, *DIGITS, "--transforms", "left", "--experts", "2", "--steps", "2", "--resume")
    refused(capsys, "belongs to another graph")


# ---------------------------------------------------------------------------------------------------- in use
def folder_of_images(folder: Path, count: int = 3, size: int = 28) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (size, size), np.uint8)).save(folder / f"own{k}.png")
    return folder


def test_own_images_are_routed(trained, tmp_path, capsys):
    command(trained, "--apply", str(folder_of_images(tmp_path / "in")), "--out", str(tmp_path / "out"))
    assert capsys.readouterr().out.strip().endswith("routes.csv")
    rows = list(csv.DictReader((tmp_path / "out" / "routes.csv").open()))
    assert [row["file"] for row in rows] == ["own0.png", "own1.png", "own2.png"]
    for row in rows:
        assert int(row["winner"]) == np.argmax([float(row["score_0"]), float(row["score_1"])])
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert image.size == (32, 32) and image.mode == "L"


def test_another_hand(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "experts" / "seed1")
    command(run, "--transfer")
    found = read_json(run / "experts" / "transfer.json")
    assert found["images"] == 1797 and {"accuracy_clean", "accuracy_restored", "hungarian"} <= set(found["over_seeds"])
    assert sum(map(sum, found["seeds"]["0"]["confusion"])) == 2 * 1797 and set(found["seeds"]) == {"0"}
    command(run, "--transfer-from", str(folder_of_images(tmp_path / "in")))
    found = read_json(run / "experts" / "transfer.json")
    assert found["images"] == 3 and "accuracy_clean" not in found["over_seeds"] and "error_restored" in found["over_seeds"]


def test_two_folders_of_images(tmp_path):
    folder_of_images(tmp_path / "data" / "canonical", 20, 16)
    folder_of_images(tmp_path / "data" / "transformed", 20, 16)
    for path in (tmp_path / "data" / "transformed").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    command(tmp_path / "run", "--dataset", "unpaired-folders", "--data-dir", str(tmp_path / "data"), "--colour", "--experts", "2",
            "--steps", "2")
    model = Experts.load(tmp_path / "run")
    assert model.shape == (3, 16, 16) and (tmp_path / "run" / "experts" / "seed0" / "grid.png").exists()
    assert not (tmp_path / "run" / "experts" / "seed0" / "confusion.png").exists()  # mechanisms are not known


# ---------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("arguments, words", [
    (["--experts", "500", "--steps", "1"], ["--experts 500", "--batch-size 8"]), (["--experts", "0", "--steps", "1"], ["--experts 0"]),
    (["--transforms", ",", "--steps", "1"], ["names no transformation"]), (["--transforms", "upwards"], ["unknown", "upwards", "invert"]),
    (["--digits", "x"], ["'x' is no digit"]), (["--seeds", "0"], ["--seeds 0"]), (["--dataset", "coloredmnist"], ["no canonical images"]),
    (["--dataset", "unpaired-folders"], ["needs --data-dir"]), (["--apply", "nowhere"], ["has no experts yet", "python -m mechanisms.exp"]),
    (["--transfer"], ["run folder", "does not exist"]), (["--apply", ".", "--transfer"], ["one at a time"]),
    (["--expert", "oracle"], ["oracle", "residual"]), (["--penalty", "-1"], ["--penalty -1.0"])])
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        command(tmp_path / "run", *(["--experts", "2"] if "--experts" not in arguments else []), *arguments)
    assert stop.value.code == 2 and not (tmp_path / "run" / "experts").exists()
    refused(capsys, *words)


def test_canonical_images_that_are_the_transformed_ones(tmp_path, capsys):
    for name in ("canonical", "transformed"):
        folder_of_images(tmp_path / name, 20, 16)
    with pytest.raises(SystemExit):
        command(tmp_path / "run", "--dataset", "unpaired-folders", "--data-dir", str(tmp_path), "--experts", "2", "--steps", "1")
    refused(capsys, "canonical ones, byte for byte", "nothing to invert")


def test_images_of_different_sizes_to_apply(trained, tmp_path, capsys):
    folder_of_images(tmp_path, 2, 16)
    Image.new("L", (20, 20)).save(tmp_path / "zz.png")
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(tmp_path), "--out", str(tmp_path / "out"))
    refused(capsys, "different sizes in one folder", "zz.png")
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(tmp_path), "--out", str(tmp_path))
    refused(capsys, "different sizes")


def test_weights_that_are_not_finite_stop_the_training_and_keep_the_state(tmp_path):
    """Every loss is NaN from the seventh update on; the weights of the last sound validation are kept, and the message says so."""
    pixels = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8)
    rows = Split("train", pixels, {"canonical": 255 - pixels})
    torch.manual_seed(0)
    model = Experts((1, 16, 16), ExpertsConfig(experts=2, width=4, reach=0, discriminator_width=4, reseed=0.0))

    class Broken(Competition):
        calls = 0

        def forward(self, batch, noise, progress):
            self.calls += self.training
            terms = super().forward(batch, noise, progress)
            return terms | {"loss": terms["loss"] * float("nan")} if self.calls > 6 and self.training else terms

    settings = TrainingConfig(**{**vars(DEFAULTS), "steps": 100, "batch_size": 4, "device": "cpu", "validations": 50, "validation_rows": 8})
    with pytest.raises(RunError, match="diverged at step 55.*lower --learning-rate.*Weights of step"):
        fit(Broken(model), rows, rows, settings, tmp_path / "x" / "seed0", model.describe(), RunOptions(), kept=model)
    kept = load(tmp_path / "x" / "seed0" / "mechanism.pt", "experts")
    assert kept["diverged"] == 55 and all(torch.isfinite(v).all() for v in kept["weights"].values())
