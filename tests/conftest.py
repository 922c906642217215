"""Fixtures of all tests: a cache of their own, and the folder of real data files where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
