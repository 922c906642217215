"""A new data set, or a new image mechanism, is one new file: dropped beside the others, it is found by its command without edits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import datasets
import mechanisms.image
from datasets import registry
from datasets.registry import names, open_dataset
from mechanisms.image.options import Options
from mechanisms.image.registry import image_mechanisms, load_image_mechanism
from mechanisms.runs.command import run_command
from mechanisms.train import main

DOCS = Path(__file__).resolve().parent.parent / "docs"
NAMES = {"datasets": "shapes-of-a-new-file", "mechanisms.image": "mechanism-of-a-new-file"}


@pytest.fixture
def new_files(tmp_path, monkeypatch):
    """The two files of docs/ under names of their own, as if they lay in the folders of the others."""
    texts = {
        "datasets": (DOCS / "my_scm.py").read_text().replace("@dataclass\nclass", "@register\n@dataclass\nclass").replace(
            "    size: int", f"    name = {NAMES['datasets']!r}\n    size: int").replace(
            "from datasets import", "from datasets.registry import register\nfrom datasets import"),
        "mechanisms.image": (DOCS / "my_mechanism.py").read_text().replace(
            "    settings = Settings", f"    name = {NAMES['mechanisms.image']!r}\n    settings = Settings")}
    for package in (datasets, mechanisms.image):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "of_a_new_file.py").write_text(texts[package.__name__])
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield tmp_path
    registry._REGISTRY.pop(NAMES["datasets"], None)
    for package in (datasets, mechanisms.image):
        sys.modules.pop(f"{package.__name__}.of_a_new_file", None)
        vars(package).pop("of_a_new_file", None)


def test_new_files_are_found_by_their_commands(new_files, capsys):
    data, mechanism = NAMES.values()
    assert data in names() and mechanism in image_mechanisms() and len(open_dataset(data, {"size": "40"}).split("train")) == 40
    arguments = ["--dataset", data, "--option", "size=40", "--run", str(new_files / "run"), "--device", "cpu"]
    run_command(Options, main, [*arguments, "--mechanism", mechanism, "--set", "width=4", "--steps", "2", "--batch-size", "8"])
    model = load_image_mechanism(new_files / "run" / "image" / "mechanism.pt")
    assert model.name == mechanism and model.config.width == 4 and model.origin is None
    for wrong, told in ((["--mechanism", "mechanism-of-new-file"], mechanism), (["--dataset", "shapes-of-new-file"], data)):
        with pytest.raises(SystemExit):
            run_command(Options, main, [*arguments, "--steps", "1", *wrong])
        assert f"(did you mean {told}?)" in capsys.readouterr().err


def test_nothing_is_left_of_them():
    assert not set(NAMES.values()) & {*names(), *image_mechanisms()}
