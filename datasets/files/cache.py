"""Arrays that are slow to make, kept on disk under a hash of everything that they depend on.

The directory is ``$OTHERWISE_CACHE``, else the platform's user cache. A file is written under a temporary name and
renamed, so readers never see half of one; two processes that build the same key both end with the same content. A
damaged file is rebuilt, and a directory that cannot be written costs a warning, not the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from datasets.files.atomic import temporary_beside

FORMAT = 1  # raise it when the meaning of stored arrays changes; older files are then never read
_DAMAGED = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def cache_dir() -> Path:
    """Where cached files live; it need not exist yet."""
    if chosen := os.environ.get("OTHERWISE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "otherwise"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "otherwise"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otherwise"


def cache_path(name: str, parameters: Mapping[str, object]) -> Path:
    """The file of one key; ``parameters`` are anything that JSON or ``str`` can express."""
    text = json.dumps({"format": FORMAT, **parameters}, sort_keys=True, default=str)
    return cache_dir() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.npz"


def cached(name: str, parameters: Mapping[str, object],
           build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """``build()``, or what an earlier call with equal ``name`` and ``parameters`` returned.

    Args:
        name: start of the file name, for people who look into the directory.
        parameters: everything that the arrays depend on.
        build: makes the arrays; none of dtype object.
    """
    path = cache_path(name, parameters)
    if (arrays := _read(path)) is None:
        arrays = build()
        _write(path, arrays)
    return arrays


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The stored arrays; None where there is no file, or (with a warning) one that is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except OSError:  # absent, or not ours to read; if it cannot be written either, that is said there
        return None
    except _DAMAGED as error:
        warnings.warn(f"cached file {path} is damaged ({error}); it is made again", stacklevel=4)
        return None


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = None
    try:
        temporary = temporary_beside(path)
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _warn_unwritable(str(path.parent), str(error))


@cache  # once per directory and reason
def _warn_unwritable(directory: str, reason: str) -> None:
    remedy = "set OTHERWISE_CACHE to a writable directory"
    warnings.warn(f"nothing can be cached in {directory} ({reason}); {remedy}", stacklevel=4)
