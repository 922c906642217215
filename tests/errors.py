"""What a message must name, whatever its sentence: values, paths, flags, options and classes, in any order."""

from __future__ import annotations

import re

_VALUE = re.compile(r"(?:\([^()]*\)|\[[^][]*\]|\S)+")  # a tuple or a list is one value, with its blanks


def naming(*values: object) -> str:
    r"""A pattern for ``match=``: every word of every value stands in the message, whole and in any order.

    ``naming("size=20 14 28")`` matches ``size=20 must be 14 or 28``, and neither ``size=200 …`` nor ``size=20 is wrong``.
    """
    return "(?s)^" + "".join(f"(?=.*{_whole(word)})" for value in values for word in _VALUE.findall(str(value)))


def says(text: object, *values: object) -> bool:
    """Whether a text names every word of every value."""
    return re.search(naming(*values), str(text)) is not None


def _whole(word: str) -> str:
    """No longer word and no longer number: ``1`` is neither in ``10`` nor in ``1.5``, ``--run`` not in ``--runs``."""
    before = r"(?<!\w)(?<!\d\.)" if word[0].isdigit() else r"(?<!\w)" if word[0].isalpha() else ""
    after = r"(?![\w-])" if word.startswith("--") else r"(?!\w)(?!\.\d)" if word[-1].isdigit() else r"(?!\w)"
    return before + r"\s+".join(map(re.escape, word.split())) + (after if word[-1].isalnum() else "")
