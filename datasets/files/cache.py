"""Arrays that are slow to make, kept on disk under a hash of everything that they depend on.

The directory is ``$OTHERWISE_CACHE``, else the platform's user cache. A file is written under a temporary name and
renamed, so readers never see half of one; two processes that build the same key both end with the same content. A
file that is damaged, or that another hand put there, is rebuilt: each holds a hash of its content and its name, and the
directory is made for its owner alone. A directory that cannot be written costs a warning, not the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from datasets.files.atomic import temporary_beside

FORMAT = 2  # raise it when the meaning of stored arrays changes; older files are then never read
_HASH = "sha256"  # the entry's own array beside the stored ones
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
    """The stored arrays; None where there is no file, or (with a warning) one that is damaged or not what was stored."""
    try:
        with path.open("rb") as file:
            if hasattr(os, "geteuid") and (owner := os.fstat(file.fileno()).st_uid) not in (os.geteuid(), 0):
                raise ValueError(f"it belongs to another user, {owner}")
            with np.load(file, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
        if str(arrays.pop(_HASH, "")) != _hash(path, arrays):
            raise ValueError("it is not what was stored there")
        return arrays
    except OSError:  # absent, or not ours to read; if it cannot be written either, that is said there
        return None
    except _DAMAGED as error:
        warnings.warn(f"cached file {path} is damaged ({error}); it is made again", stacklevel=4)
        return None


def _hash(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that an entry holds, and of the name that says what it is."""
    digest = hashlib.sha256(path.name.encode())
    for key, array in sorted(arrays.items()):
        digest.update(f"\0{key}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = None
    try:
        _make_private(path.parent)
        temporary = temporary_beside(path)
        with open(temporary, "wb") as file:
            np.savez(file, **arrays, **{_HASH: np.array(_hash(path, arrays))})
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _warn_unwritable(str(path.parent), str(error))


def _make_private(folder: Path) -> None:
    """Make the folder, for its owner alone; of one that is there, which others may write, the permissions are changed, with a word.

    Not those of a folder that many use, with the sticky bit (``/tmp``), or of somebody else's: there an entry's owner is asked.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    mode = (known := folder.stat()).st_mode
    others = mode & (stat.S_IWGRP | stat.S_IWOTH)
    if hasattr(os, "geteuid") and others and known.st_uid == os.geteuid() and not mode & stat.S_ISVTX:
        folder.chmod(0o700)
        warnings.warn(f"the cache folder {folder} could be written by others; it is yours alone now (0700)", stacklevel=5)


@cache  # once per directory and reason
def _warn_unwritable(directory: str, reason: str) -> None:
    remedy = "set OTHERWISE_CACHE to a writable directory"
    warnings.warn(f"nothing can be cached in {directory} ({reason}); {remedy}", stacklevel=4)
