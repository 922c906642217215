"""Explains the clash with another installed package named ``datasets``, instead of failing strangely later."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def check_datasets() -> None:
    """Raises ImportError, with the remedy, if ``import datasets`` would not find this project's folder."""
    here = Path(__file__).resolve().parent.parent / "datasets"
    spec = importlib.util.find_spec("datasets")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if found != here:
        raise ImportError(
            f"'datasets' is {found or 'missing'}, not this project's {here}: another package of that name comes first on the "
            f"path. Run commands as 'python -m …' from {here.parent}, or uninstall the other package in this environment."
        )
