"""Errors that a user can act upon: commands print them as one line, without a traceback."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_OBEYED = {"Cc", "Cs", "Zl", "Zp"}  # categories: control sequences, lone halves of characters, ends of lines
_TURNED = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # which turn the direction of writing


class UserError(ValueError):
    """Something that was asked for cannot be done; the message names the value, the place and the remedy."""


class SchemaError(UserError):
    """A variable, a graph or a value that contradicts the schema; the message names it and the remedy."""


def shown(text: object) -> str:
    r"""Text from files and names as it may be shown: one line, in which ``\x1b`` and ``\n`` are written out and not obeyed."""
    return "".join(sign.encode("unicode_escape").decode() if unicodedata.category(sign) in _OBEYED or sign in _TURNED else sign
                   for sign in str(text))


def valid_are(valid: Iterable[str], given: str) -> str:
    """``valid are a, b, c``, and which of them was probably meant by ``given``: the end of a message about an unknown name."""
    names = list(valid)
    return f"valid are {', '.join(names) or 'none'}{did_you_mean(names, given)}"


def did_you_mean(valid: Iterable[str], given: str) -> str:
    """`` (did you mean a?)``, of the name that is most like ``given``; nothing where none is."""
    meant = get_close_matches(given, list(valid), 1)
    return f" (did you mean {meant[0]}?)" if meant else ""
