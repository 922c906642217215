"""Tables and json files: the one place where their text is decoded, and where they are found to be none."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets.files.idx import DataError

# the longer marks first: that of UTF-32 begins as that of UTF-16 does
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_UNSEEN = "\ufeff\u200b\u2060"  # byte-order marks and blanks of no width, which spreadsheets and concatenation leave behind
_REMEDY = "save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-8, UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        DataError: for a file that cannot be read, or is in another encoding; the first byte that shows it is named.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} is not in {encoding.removesuffix('-sig').upper()}: byte {error.start + 1} of the file is "
                        f"0x{raw[error.start:error.start + 1].hex()}; {_REMEDY}") from error
    if (place := text.find("\0")) >= 0:
        raise DataError(f"{path} holds a zero, character {place + 1}: it is no text, or in UTF-16 without a byte-order mark; {_REMEDY}")
    return text.lstrip(_UNSEEN)


def read_csv(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table with a header and commas, each with its number in the file; there is one cell for each column.

    Raises:
        DataError: see :func:`read_text`; for a missing column, one of the ``needed`` that is there twice, or a line of more or fewer cells.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    lines: list[tuple[int, dict[str, str]]] = []
    try:
        header = [name.strip(_UNSEEN).strip() for name in next(reader, [])]
        told = ", ".join(header) or "empty"
        if missing := [name for name in needed if name not in header]:
            raise DataError(f"{path} has no column {', '.join(missing)}; its header is {told}")
        if twice := [name for name in needed if header.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]} {header.count(twice[0])} times; its header is {told}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) < len(header) or any(cells[len(header):]):
                raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has {len(header)} columns: {told}; "
                                "a cell with a comma in it needs quotes around it")
            lines.append((reader.line_num, dict(zip(header, cells, strict=False))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not of a table with commas: {error}; mend its quotes") from error
    return lines


def read_json(path: Path) -> Any:
    """What a json file holds.

    Raises:
        DataError: for a damaged file, or one that is nested too deeply to be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no json file: {error}; fetch it again") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be such a table; fetch it again") from error


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_id(value: Any) -> bool:
    """Whether a value of a json file can tell one thing from another: a finite number or text."""
    return isinstance(value, str) or is_number(value)


def place_name(location: Any) -> str:
    """A camera's name: that of 38, 38.0 and "38" is one; empty where there is none."""
    text = str(location).strip() if is_id(location) else ""
    return whole.group(1) if (whole := re.fullmatch(r"(-?\d+)\.0+", text)) else text
