"""Locks of folders: one process at a time, for as long as it lives."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mechanisms.runs.files import RunError


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Held by one process at a time: who comes second waits, and finds what the first has written.

    Args:
        path: an empty file in the folder that is written to; the folder is made.

    Raises:
        RunError: where nothing can be written there.
    """
    with _opened(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(path: Path) -> IO[str]:
    """A file to lock, held open for as long as the lock is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w")
    except OSError as error:
        raise RunError(f"cannot write into {path.parent}: {error}. Choose another --run") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for one training; the lock goes with the process, however that ends.

    Raises:
        RunError: if another process trains into it, or it cannot be written.
    """
    with _opened(folder / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another training is writing into {folder}; wait for it, or choose another --run") from None
        for left in folder.glob(".*.tmp"):  # by a training that was killed while it wrote
            left.unlink(missing_ok=True)
        yield
