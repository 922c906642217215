"""Files that are written under a temporary name first, and what a process that was killed meanwhile has left of them."""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path

_swept: set[Path] = set()  # folders that this process has looked through
_lock = threading.Lock()


def temporary_beside(path: Path) -> Path:
    """A name beside ``path`` to write it under before it is renamed; it tells host, process and thread.

    The folder is made. The first time that this process writes into it, it is rid of what dead processes have left there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock:
        if (folder := path.parent.resolve()) not in _swept:
            _swept.add(folder)
            sweep(folder)
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}-{threading.get_ident()}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more; of another machine nobody knows."""
    for left in folder.glob(".*.tmp"):
        *_, host, process, _ = left.name.rsplit(".", 3)
        number = process.partition("-")[0]
        if host == _host() and number.isdigit() and not _writes(int(number), process):
            left.unlink(missing_ok=True)


def _writes(number: int, process: str) -> bool:
    """Whether the process may still be writing; of our own number, whether another of our threads may."""
    if number == os.getpid():
        others = {str(thread.ident) for thread in threading.enumerate() if thread is not threading.current_thread()}
        return process.partition("-")[2] in others
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _host() -> str:
    return platform.node().replace(".", "-") or "localhost"
