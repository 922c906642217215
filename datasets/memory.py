"""How much memory there is, and a refusal of what cannot fit before it is begun. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.errors import UserError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers


def memory() -> int:
    """Bytes of this machine's memory, or of what its container may have."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        found = 2**63
    for path in map(Path, _LIMITS):
        try:
            found = min(found, int(path.read_text()))
        except (OSError, ValueError):  # there is no such limit
            continue
    return found


def check_memory(needed: int, what: str, remedy: str, error: type[UserError] = UserError) -> None:
    """Raises UserError for what needs more bytes than there are, saying how large it would be.

    Args:
        what: what would need them, such as ``--renderings 1000000``.
        remedy: what to do instead.
    """
    if needed > (there := memory()):
        raise error(f"{what} needs {size_of(needed)} of memory; this machine has {size_of(there)}. {remedy}")


def size_of(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.0f} TiB"
