"""Fixtures of all tests: a cache of their own, and the folder of real data files where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

# before anything imports torch, and for the commands that tests start: networks here are so small that threads waiting
# for each other cost several times what they bring
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache directory for the whole session, so that no test reads or writes the user's."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTHERWISE_CACHE", str(directory))
        yield directory


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory for this test alone."""
    monkeypatch.setenv("OTHERWISE_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files (``mnist/``, ``morphomnist_official/``): ``$OTHERWISE_SHARED/data`` or ``../shared/data``."""
    root = os.environ.get("OTHERWISE_SHARED") or Path(__file__).resolve().parents[2] / "shared"
    folder = Path(root) / "data"
    if not (folder / "morphomnist_official").is_dir():
        pytest.skip("no shared data: OTHERWISE_SHARED names a folder with data/mnist and data/morphomnist_official")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """A run folder with both mechanisms, trained for seconds on 96 digits: for plumbing, not for quality.

    Read it; do not train into it. Its data set is ``mechanisms.runs.folder.dataset_of(tiny_run)``.
    """
    from datasets.options import DataOptions
    from mechanisms.image.config import ImageConfig
    from mechanisms.image.fit import train_image
    from mechanisms.image.options import DEFAULTS
    from mechanisms.training.config import RunOptions
    from pgm import options as attributes
    from pgm.fit import train_attributes

    digits = ("train_digits=96", "valid_digits=32", "test_digits=32", "renderings=1")
    data, run = DataOptions("morphomnist", option=digits), RunOptions(tmp_path_factory.mktemp("runs") / "tiny")
    dataset = data.open()
    train_attributes(dataset, data, run, replace(attributes.DEFAULTS, steps=60, device="cpu"))
    small = ImageConfig(z_dim=4, embedding=16, widths="16:8,8:16,4:16,1:16")
    training = replace(DEFAULTS, steps=20, batch_size=16, device="cpu", precision="fp32")
    train_image(dataset, data, run, training, config=small)
    return run.run
