"""Tables as text, and as files; what stands in them over seeds."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.errors import shown
from mechanisms.runs.files import replacing


def mean_over(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error over seeds; None for the error of one seed, or of infinite values."""
    mean = sum(values) / len(values)
    if len(values) < 2 or not math.isfinite(mean):
        return mean, None
    return mean, statistics.stdev(values) / len(values) ** 0.5


def measured(value: float, error: float | None = None) -> str:
    """``1.234 ± 0.012``: a value in as many digits as its error lends weight to: two of the error's, else three of its own."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    scale = error if error else value
    digits = min(4, max(0, (1 if error else 2) - math.floor(math.log10(abs(scale))))) if scale else 1
    return (f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")).replace("-", "−")


def percent(mean: float, error: float | None = None, sign: bool = False) -> str:
    """``70.8 ± 0.9``: shares in percent."""
    return (f"{100 * mean:{'+' if sign else ''}.1f}" + ("" if error is None else f" ± {100 * error:.1f}")).replace("-", "−")


def finite(value: float | None) -> float | str | None:
    """A number as JSON can have it: an infinite one as text."""
    return str(value) if value is not None and math.isinf(value) else value


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; cells hold text, which is shown as it is."""
    lines = [[shown(cell).replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "| " + " | ".join("-" * width for width in widths) + " |", *text[1:]])


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Values of ``columns`` under their names, whole or not at all: tab-separated if ``path`` ends in ``.tsv``, else comma-separated.

    None, and what a row lacks, is an empty cell; what a row has beside is left out.
    """
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        delimiter, end = ("\t", "\n") if path.suffix == ".tsv" else (",", "\r\n")
        writer = csv.DictWriter(file, columns, extrasaction="ignore", delimiter=delimiter, lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
