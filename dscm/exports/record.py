"""The record of an export, ``provenance.json``: it marks a folder as holding these images and no others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.files.atomic import sweep, temporary_beside
from dscm.exports.files import synced
from mechanisms.runs.files import RunError, read_json

PROVENANCE = "provenance.json"
AGAIN = "Restore a copy of it, or remove the folder and give its dscm.export command again"
_MAY_DIFFER = ("versions",)


def claim(out: Path, provenance: Mapping[str, Any]) -> None:
    """Mark ``out`` as holding these images, or check that it does; several processes may do so at once.

    Raises:
        RunError: for a folder with other contents, or images of other provenance; the message says what differs.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; choose a folder")
    if out.is_dir():
        sweep(out)
    # listed before provenance is looked for: no process writes a shard before there is one
    there = [path.name for path in out.iterdir() if not _passing(path.name)] if out.is_dir() else []
    if not (out / PROVENANCE).exists():
        if there:
            named = ", ".join(sorted(there)[:3]) + (", …" if len(there) > 3 else "")
            raise RunError(f"--out {out} is not empty ({named}) and has no {PROVENANCE}; nothing was touched. Choose an empty folder")
        if _created(out / PROVENANCE, provenance):
            return
    earlier = read_json(out / PROVENANCE, {}, AGAIN)
    if changed := [key for key in provenance if key not in _MAY_DIFFER and earlier.get(key) != provenance[key]]:
        differences = "; ".join(f"{key}: {_short(earlier.get(key))} there, {_short(provenance[key])} asked for" for key in changed)
        raise RunError(f"--out {out} holds images of other provenance ({differences}); nothing was touched. Choose another folder")
    if strange := sorted(set(there) - {PROVENANCE, *provenance["folders"]}):
        named = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
        raise RunError(f"--out {out} holds other things beside its images ({named}); nothing was touched. Choose another folder")


def _passing(name: str) -> bool:
    """Whether a file is one that :func:`_created` is about to rename, or a desktop's note on how it shows the folder."""
    return name == ".DS_Store" or name.startswith(f".{PROVENANCE}.")


def _created(path: Path, value: Any) -> bool:
    """Write a file that is not there yet, whole; False if another process has been faster, whose file stays as it is.

    Raises:
        RunError: if it cannot be written.
    """
    temporary = None
    try:
        temporary = temporary_beside(path)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, default=str) + "\n")
            synced(file)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunError(f"cannot write {path}: {error}. Free some space or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
