"""``python -m mechanisms.experts`` end to end on a few digits: training, resuming, pictures, application, transfer, refusals."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datasets.base import Split
from datasets.errors import UserError
from datasets.registry import open_dataset
from datasets.schema import Variable
from datasets.unpaired import UnpairedDataset, unpaired
from mechanisms import Experts
from mechanisms.experts import classifier
from mechanisms.experts.__main__ import main
from mechanisms.experts.competition import Competition
from mechanisms.experts.data import check_apart, unlabelled
from mechanisms.experts.model import trained_seeds
from mechanisms.experts.options import DEFAULTS, ExpertsConfig, Options
from mechanisms.experts.transfer import _digits_of
from mechanisms.runs.command import run_command
from mechanisms.runs.files import MetricsLog, RunError, load, read_json, write_json
from mechanisms.training.config import RunOptions, TrainingConfig
from mechanisms.training.hooks import Hooks
from mechanisms.training.loop import fit
from tests.errors import naming, says

DIGITS = ["--option", "train_digits=60", "--option", "valid_digits=20", "--option", "test_digits=20"]
SHOWN = [0, 1, 3, 4, 5, 6, 7, 8, 9]  # digits among the 30 of these that are transformed
SMALL = ["--width", "4", "--reach", "2", "--discriminator-width", "4", "--latent", "4", "--batch-size", "8", "--validations", "2",
         "--device", "cpu"]


def command(run: Path, *arguments: str) -> None:
    run_command(Options, main, ["--run", str(run), *SMALL, *arguments])


def train(run: Path, *arguments: str, steps: int = 6) -> None:
    command(run, *DIGITS, "--transforms", "right,invert", "--experts", "2", "--steps", str(steps), *arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, session_cache) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "SETTINGS", TrainingConfig(steps=3, batch_size=8, precision="fp32", validations=1))
        run = tmp_path_factory.mktemp("experts") / "run"
        train(run, "--seeds", "2")
        yield run  # the classifier is still asked for with these settings


def refused(capsys, *words: str) -> None:
    error = capsys.readouterr().err
    assert says(error, *words) and "Traceback" not in error, error


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


def test_a_judge_that_was_interrupted_is_trained_to_its_end(tmp_path, monkeypatch):
    settings = TrainingConfig(steps=6, batch_size=8, precision="fp32", validations=1, schedule="constant")
    options = {"train_digits": 60, "valid_digits": 20, "test_digits": 20, "transforms": "right,invert"}
    dataset = unpaired(open_dataset("transformed-mnist", options))
    for steps, run in ((2, "half"), (6, "half"), (6, "whole")):
        monkeypatch.setattr(classifier, "SETTINGS", replace(settings, steps=steps))
        judge = classifier.classifier(tmp_path / run, dataset, "cpu")
    half, whole = (load(tmp_path / run / "classifier" / "mechanism.pt")["weights"] for run in ("half", "whole"))
    assert all(torch.equal(half[name], whole[name]) for name in whole) and not judge.training
    before = (tmp_path / "whole" / "classifier" / "mechanism.pt").stat().st_mtime_ns
    classifier.classifier(tmp_path / "whole", dataset, "cpu")  # one that is done is read
    assert (tmp_path / "whole" / "classifier" / "mechanism.pt").stat().st_mtime_ns == before


def test_of_one_digit_nothing_is_classified(tmp_path):
    sizes = [word for name in ("train", "valid", "test") for word in ("--option", f"{name}_digits=200")]
    command(tmp_path / "run", *sizes, "--transforms", "right,invert", "--experts", "2", "--steps", "2", "--digits", "6")
    found = read_json(tmp_path / "run" / "experts" / "metrics.json")["over_seeds"]
    assert "error_restored" in found and not any("accuracy" in name for name in found) and not (tmp_path / "run" / "classifier").exists()


def test_more_seeds_join_the_table_and_other_settings_do_not(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    train(run, "--seed", "2")
    assert set(read_json(run / "experts" / "metrics.json")["seeds"]) == {"0", "1", "2"}
    train(run, "--seed", "3", "--penalty", "0")
    assert set(read_json(run / "experts" / "metrics.json")["seeds"]) == {"3"}
    shutil.rmtree(run / "experts" / "seed3")
    train(tmp_path / "other", "--spectral", "--no-identity", "--balance", "0.5", "--experts", "2")
    capsys.readouterr()
    command(tmp_path, "--compare", str(run), str(tmp_path / "other"))
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:])
    assert first[:3] == ["run", "right,invert", "2"] and first[4] == "3" and "±" in first[5] and first[-2].endswith("of 3")
    assert {"--spectral", "--no-identity", "--balance 0.5"} <= set(re.findall(r"--[a-z-]+(?: [0-9.]+)?", second[3])) and second[4] == "1"
    worst = min(read_json(run / "experts" / f"seed{k}" / "result.json")["figures"]["purity"] for k in range(3))
    assert first[9] == f"{worst:.3f}"


def test_what_cannot_be_compared(trained, tmp_path, capsys):
    for arguments, words in ((["--compare", str(tmp_path)], [tmp_path, "mechanisms.experts"]),
                             (["--compare", str(trained), "--transfer"], ["--transfer --compare"])):
        with pytest.raises(SystemExit):
            command(tmp_path, *arguments)
        refused(capsys, *words)


def test_training_sees_no_attribute(trained):
    rows = unlabelled(unpaired(open_dataset("transformed-mnist", {"train_digits": 20, "valid_digits": 20, "test_digits": 20})), "train")
    assert set(rows.attributes) == {"canonical"} and set(rows.batch([0, 3])) == {"canonical", "image"}
    assert rows.batch([0, 13])["canonical"].shape == (2, 1, 32, 32)


def test_in_python(trained):
    model = Experts.load(trained, seed=1)
    made, winner, scores = model.invert(torch.rand(5, 1, 32, 32))
    assert made.shape == (5, 1, 32, 32) and scores.shape == (5, 2) and torch.equal(winner, scores.argmax(1))
    double = model.invert(torch.rand(2, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    single = model.invert(torch.rand(2, 1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).float())
    assert double.image.dtype == torch.float32 and all(torch.equal(a, b) for a, b in zip(double, single, strict=True))
    none = model.invert(torch.zeros(0, 1, 32, 32))
    assert [tuple(part.shape) for part in none] == [(0, 1, 32, 32), (0,), (0, 2)] and none.winner.dtype == torch.int64
    again = Experts.load(trained, seed=1).invert(torch.zeros(1, 1, 32, 32))
    assert torch.equal(again.scores, model.invert(torch.zeros(1, 1, 32, 32)).scores)
    assert load(trained / "experts" / "seed0" / "mechanism.pt", "experts")["shape"] == [1, 32, 32]


def test_folders_that_are_no_seeds(tmp_path):
    for name in ("seed2", "seed10", "seed0-old", "seed", "seed01", "seeds"):
        (tmp_path / "experts" / name).mkdir(parents=True)
        (tmp_path / "experts" / name / "mechanism.pt").touch()
    assert trained_seeds(tmp_path) == [2, 10]


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
        return fit(kind(model), rows, rows, settings, tmp_path / name, model.describe(), options,
                   Hooks(kept=model)).state_dict()

    whole = run("whole", Competition, RunOptions())
    with pytest.raises(KeyboardInterrupt):
        run("parts", Interrupted, RunOptions(), checkpoint_seconds=0.0)  # a checkpoint before every update
    parts = run("parts", Competition, RunOptions(resume=True), checkpoint_seconds=0.0)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_is_read_again_and_not_overwritten(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "experts" / "seed0" / "mechanism.pt").read_bytes()
    train(run, "--resume", "--seeds", "2")
    assert (run / "experts" / "seed0" / "mechanism.pt").read_bytes() == before
    with pytest.raises(SystemExit):
        train(run)
    refused(capsys, "--resume --overwrite")
    with pytest.raises(SystemExit):
        command(run, *DIGITS, "--transforms", "left", "--experts", "2", "--steps", "2", "--resume")
    refused(capsys, "transformed-mnist", "transforms=right,invert", "transforms=left")
    with pytest.raises(SystemExit):
        train(run, "--resume", "--overwrite")
    refused(capsys, "--resume", "--overwrite")
    assert (run / "experts" / "seed0" / "mechanism.pt").read_bytes() == before
    command(run, *DIGITS, "--transforms", "right,invert", "--experts", "2", "--resume")  # the budget is that of the training
    assert load(run / "experts" / "seed0" / "mechanism.pt")["step"] == 6
    told = capsys.readouterr().out
    assert "seed 1: expert " in told and str(run / "experts" / "seed0") in told


# ---------------------------------------------------------------------------------------------------- in use
def folder_of_images(folder: Path, count: int = 3, size: int = 28) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (size, size), np.uint8)).save(folder / f"own{k}.png")
    return folder


def test_own_images_are_routed(trained, tmp_path, capsys):
    command(trained, "--apply", str(folder_of_images(tmp_path / "in")), "--out", str(tmp_path / "out"))
    first, last = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("3 images through the experts of seed 0: ") and last.endswith("routes.csv")
    rows = list(csv.DictReader((tmp_path / "out" / "routes.csv").open()))
    assert [row["file"] for row in rows] == ["own0.png", "own1.png", "own2.png"]
    for row in rows:
        assert float(row[f"score_{row['winner']}"]) == max(float(row["score_0"]), float(row["score_1"]))  # they are rounded
        with Image.open(tmp_path / "out" / row["file"]) as image:
            assert image.size == (32, 32) and image.mode == "L"


def test_experts_that_were_stopped_are_warned_of(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    write_json(path := run / "experts" / "seed0" / "config.json", {"training": {**read_json(path)["training"], "steps": 60}})
    with pytest.warns(UserWarning, match=naming(run, "6 60 --resume")):
        command(run, "--apply", str(folder_of_images(tmp_path / "in")))


def test_seeds_that_were_trained_otherwise_are_not_transferred(trained, tmp_path):
    run, folder = tmp_path / "run", str(folder_of_images(tmp_path / "in"))
    shutil.copytree(trained, run)
    train(run, "--seed", "4", "--penalty", "0")
    with pytest.warns(UserWarning, match=naming("4 seed 0 --seed")):
        command(run, "--transfer-from", folder)
    assert set(read_json(run / "experts" / "transfer-in.json")["seeds"]) == {"0", "1"}
    with pytest.warns(UserWarning, match=naming("0, 1 seed 4 --seed")):
        command(run, "--transfer-from", folder, "--seed", "4")
    assert set(read_json(run / "experts" / "transfer-in.json")["seeds"]) == {"4"}


def save(pixels: np.ndarray, path: Path) -> Path:
    """One image in a folder of its own, which is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.parent


def told(folder: Path) -> list[list[float]]:
    """Scores in ``routes.csv``."""
    rows = csv.DictReader((folder / "routes.csv").open())
    return [[float(value) for name, value in row.items() if name.startswith("score_")] for row in rows]


def test_transformed_digits_are_padded_with_their_edges(trained, tmp_path):
    """An inverted digit is white outside too: black around it would be no image of any mechanism."""
    pixels = 255 - np.random.default_rng(0).integers(0, 100, (28, 28), np.uint8)
    for name, array in (("small", pixels), ("edges", np.pad(pixels, 2, mode="edge")), ("black", np.pad(pixels, 2))):
        command(trained, "--apply", str(save(array, tmp_path / name / "a.png")), "--out", str(tmp_path / f"{name}-out"))
    for name in ("a.png", "routes.csv"):
        small, edges, black = ((tmp_path / f"{which}-out" / name).read_bytes() for which in ("small", "edges", "black"))
        assert small == edges != black  # what is of the full size is taken as it is


def test_sizes_that_do_not_suit_are_refused(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(folder_of_images(tmp_path / "in", 2, 20)), "--out", str(tmp_path / "out"))
    refused(capsys, 20, 32, 28)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resized", [True, False])
def test_sizes_are_changed_where_training_changed_them(tmp_path, capsys, resized):
    for name in ("canonical", "transformed"):
        for k, path in enumerate(sorted(folder_of_images(tmp_path / "data" / name, 20, 20 if resized else 16).iterdir())):
            save(np.asarray(Image.open(path)) // (k % 2 + 2 if name == "transformed" else 1), path)
    command(tmp_path / "run", "--dataset", "unpaired-folders", "--data-dir", str(tmp_path / "data"), "--experts", "2", "--steps", "1",
            *(["--option", "size=16"] if resized else []))
    shutil.rmtree(tmp_path / "data")  # is not needed any more
    arguments = ["--apply", str(folder_of_images(tmp_path / "in", 1, 20)), "--out", str(tmp_path / "out")]
    if resized:
        command(tmp_path / "run", *arguments)
        pixels = np.asarray(Image.open(tmp_path / "in" / "own0.png").resize((16, 16), Image.Resampling.BILINEAR))
        scores = Experts.load(tmp_path / "run").invert(torch.from_numpy(pixels.copy())[None, None].float() / 255).scores
        assert told(tmp_path / "out") == [pytest.approx(scores[0].tolist(), abs=1e-4)]
    else:
        with pytest.raises(SystemExit):
            command(tmp_path / "run", *arguments)
        refused(capsys, 20, 16)


def test_the_seed_and_the_device_that_are_asked_for(trained, tmp_path, capsys, monkeypatch):
    asked, folder = [], save(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8), tmp_path / "in" / "a.png")
    monkeypatch.setattr("mechanisms.experts.apply.find_device", lambda name: torch.device(asked.append(name) or "cpu"))
    image = torch.from_numpy(np.asarray(Image.open(folder / "a.png")).copy())[None, None].float() / 255
    expected = {seed: Experts.load(trained, seed).invert(image).scores[0].tolist() for seed in (0, 1)}
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)
    for given, seed in ([], 0), (["--seed", "1"], 1):
        command(trained, "--apply", str(folder), "--out", str(tmp_path / "out"), *given)
        assert told(tmp_path / "out") == [pytest.approx(expected[seed], abs=1e-4)]
    assert asked == ["cpu", "cpu"]
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(folder), "--out", str(tmp_path / "out"), "--seed", "7")
    refused(capsys, "7", "0, 1")
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "experts" / "seed0")
    command(run, "--apply", str(folder), "--out", str(tmp_path / "out"))  # the default is no wish
    assert told(tmp_path / "out") == [pytest.approx(expected[1], abs=1e-4)]


def test_names_that_would_be_written_twice(trained, tmp_path, capsys):
    for name in ("a.jpg", "a.png", "b.png"):
        save(np.zeros((32, 32), np.uint8), tmp_path / "in" / name)
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    refused(capsys, tmp_path / "in/a.jpg", tmp_path / "in/a.png")
    assert not (tmp_path / "out").exists()


def test_transfer_to_scikit_learns_digits(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "experts" / "seed1")
    command(run, "--transfer")
    found = read_json(run / "experts" / "transfer-digits.json")
    images = np.isin(load_digits().target, SHOWN).sum()
    assert found["images"] == images and {"accuracy_clean", "accuracy_restored", "hungarian"} <= set(found["over_seeds"])
    assert sum(map(sum, found["seeds"]["0"]["confusion"])) == 2 * images and set(found["seeds"]) == {"0"}
    command(run, "--transfer-from", str(folder_of_images(tmp_path / "in" / "greek" / "alpha").parents[1]))
    assert (run / "experts" / "transfer-digits.json").exists()  # each source has a file of its own, and a picture
    found = read_json(run / "experts" / "transfer-in.json")
    assert np.asarray(Image.open(run / "experts" / "transfer-in.png").convert("L")).std() > 5
    assert found["images"] == 3 and "accuracy_clean" not in found["over_seeds"] and "error_restored" in found["over_seeds"]


def test_digits_that_the_run_did_not_keep_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "SETTINGS", TrainingConfig(steps=1, batch_size=4, precision="fp32", validations=1))
    run = tmp_path / "run"
    train(run, "--digits", "1,6", steps=1)
    command(run, "--transfer")
    found = read_json(run / "experts" / "transfer-digits.json")
    assert found["images"] == 182 + 181 and "accuracy_restored" in found["over_seeds"]  # scikit-learn's ones and sixes
    monkeypatch.setattr("mechanisms.experts.transfer._digits_of", lambda run, dataset: None)
    monkeypatch.setattr("mechanisms.experts.transfer.sklearn_digits", lambda shape: (torch.full((5, *shape), 0.9), torch.arange(5)))
    with pytest.warns(UserWarning, match=naming("scikit-learn's 0.90 0.05")):
        command(run, "--transfer")
    found = read_json(run / "experts" / "transfer-digits.json")
    assert found["images"] == 5 and "accuracy_restored" not in found["over_seeds"] and "error_restored" in found["over_seeds"]


@pytest.mark.parametrize("label, classes, kept", [("digit", 10, SHOWN), ("digit", tuple("abcdefghij"), None),
                                                  ("digit", 3, None), ("", 10, None)])
def test_labels_that_are_no_digits_are_not_judged(trained, label, classes, kept):
    found = _digits_of(trained, SimpleNamespace(label=label, schema={"digit": Variable("digit", "categorical", classes=classes)}))
    assert found is None if kept is None else found.tolist() == kept


def test_folders_named_like_transformations_do_not_run_them(tmp_path, capsys):
    folder_of_images(tmp_path / "data" / "canonical", 20, 16)
    for k, name in enumerate(("blur", "rotate")):
        for path in folder_of_images(tmp_path / "data" / "transformed" / name, 12, 16).iterdir():
            save(np.asarray(Image.open(path)) // (k + 2), path)
    run = tmp_path / "run"
    command(run, "--dataset", "unpaired-folders", "--data-dir", str(tmp_path / "data"), "--experts", "2", "--steps", "1")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command(run, "--transfer")
    refused(capsys, "unpaired-folders", "--apply FOLDER")
    assert not list((run / "experts").glob("transfer*"))


def test_other_clothes_in_idx_files(trained, tmp_path, monkeypatch):
    """As Fashion-MNIST comes; bright images are no digits, and of many as many as fit are drawn."""
    pixels = np.random.default_rng(0).integers(150, 256, (30, 28, 28), np.uint8)
    for name, array in (("t10k-images-idx3-ubyte", pixels), ("t10k-labels-idx1-ubyte", np.zeros(30, np.uint8))):
        header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        (tmp_path / name).write_bytes(header + array.tobytes())
    monkeypatch.setattr("datasets.files.elsewhere.AT_MOST", 12)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with pytest.warns(UserWarning, match=naming(tmp_path, "0.61 0.08")):
        command(run, "--transfer-from", str(tmp_path))
    assert read_json(run / "experts" / f"transfer-{tmp_path.name}.json")["images"] == 12


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


def test_the_file_of_ones_own_that_the_docs_show(tmp_path):
    file = Path(__file__).resolve().parents[3] / "docs" / "my_unpaired.py"
    command(tmp_path / "run", "--dataset", str(file), "--experts", "15", "--batch-size", "15", "--steps", "2")
    found = read_json(tmp_path / "run" / "experts" / "metrics.json")["seeds"]["0"]
    assert np.sum(found["confusion"]) == 200 and len(found["usage"]) == 15 and "clean" not in str(found["figures"])
    with Image.open(tmp_path / "run" / "experts" / "seed0" / "grid.png") as image:
        assert image.width < 1200  # of so many experts only those that win


# ---------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("arguments, words", [
    (["--experts", "500", "--steps", "1"], ["--experts 500", "--batch-size 8"]), (["--experts", "0", "--steps", "1"], ["--experts 0"]),
    (["--transforms", ",", "--steps", "1"], ["transforms ','", "','"]),
    (["--transforms", "upwards"], ["unknown", "upwards", "invert"]),
    (["--digits", "x"], ["'x'", "0, 1, 2"]), (["--seeds", "0"], ["--seeds 0"]),
    (["--dataset", "coloredmnist"], ["coloredmnist"]),
    (["--dataset", "unpaired-folders"], ["--data-dir"]), (["--apply", "nowhere"], ["mechanisms.experts --run"]),
    (["--transfer"], ["mechanisms.experts --run"]), (["--apply", ".", "--transfer"], ["--apply", "--transfer"]),
    (["--expert", "oracle"], ["oracle", "residual"]), (["--penalty", "-1"], ["--penalty -1.0"]),
    (["--keep", "best"], ["--keep best", "--steps"]), (["--patience", "3"], ["--patience"]),
    (["--option", "train_digits=4", "--experts", "40", "--batch-size", "50", "--transforms", "right"], ["2"])])
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
    refused(capsys, "20 canonical/ transformed/")


class Same(UnpairedDataset):
    """Every transformed image is a canonical one, of another split and in another order; the first ``apart`` rows are not."""

    variables = (Variable("image", "image", shape=(1, 8, 8)),)

    def __init__(self, lazy: bool = False, apart: int = 0) -> None:
        self.lazy, self.apart = lazy, apart
        self.all = torch.randint(0, 256, (1500, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def _part(self, split: str, shift: int) -> torch.Tensor:
        first = 500 * ((("train", "valid", "test").index(split) + shift) % 3)
        return self.all[first:first + 500].clone()

    def canonical(self, split: str) -> Any:
        images = self._part(split, 0)
        return [image.numpy() for image in images] if self.lazy else images

    def load(self, split: str) -> Mapping[str, Any]:
        images = self._part(split, 1).flip(0)
        images[:self.apart] = 255 - images[:self.apart]
        return {"image": [image.numpy() for image in images] if self.lazy else images}


@pytest.mark.parametrize("lazy", [False, True])
def test_pairs_are_found_in_any_order_and_split(lazy):
    with pytest.raises(UserError, match=naming("1500 Same canonical/ transformed/")):
        check_apart(Same(lazy))
    check_apart(Same(lazy, apart=260))
    assert len({Same(lazy).training_fingerprint, Same(lazy, apart=1).training_fingerprint}) == 2


def test_resuming_with_other_canonical_images_is_refused(tmp_path, capsys):
    folder_of_images(tmp_path / "data" / "canonical", 20, 16)
    for path in folder_of_images(tmp_path / "data" / "transformed", 20, 16).iterdir():
        save(255 - np.asarray(Image.open(path)), path)
    arguments = ["--dataset", "unpaired-folders", "--data-dir", str(tmp_path / "data"), "--experts", "2", "--steps", "1"]
    command(tmp_path / "run", *arguments)
    command(tmp_path / "run", *arguments, "--resume")
    for path in (tmp_path / "data" / "canonical").iterdir():
        save(np.asarray(Image.open(path)) // 2, path)
    with pytest.raises(SystemExit):
        command(tmp_path / "run", *arguments, "--resume")
    refused(capsys, "unpaired-folders", "--run")


def test_images_of_different_sizes_to_apply(trained, tmp_path, capsys):
    folder_of_images(tmp_path, 2, 32)
    Image.new("L", (20, 20)).save(tmp_path / "zz.png")
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(tmp_path), "--out", str(tmp_path / "out"))
    refused(capsys, "32 zz.png 20")


def test_what_is_read_is_not_written_over(trained, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in folder_of_images(tmp_path, 2, 32).iterdir()}
    with pytest.raises(SystemExit):
        command(trained, "--apply", str(tmp_path), "--out", str(tmp_path / "x" / ".."))
    refused(capsys, "--out", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
    with pytest.raises(RunError, match=naming(55, tmp_path / "x" / "seed0", "--learning-rate")):
        fit(Broken(model), rows, rows, settings, tmp_path / "x" / "seed0", model.describe(), RunOptions(), Hooks(kept=model))
    kept = load(tmp_path / "x" / "seed0" / "mechanism.pt", "experts")
    assert kept["diverged"] == 55 and all(torch.isfinite(v).all() for v in kept["weights"].values())
