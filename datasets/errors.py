"""Errors that a user can act upon: commands print them as one line, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something that was asked for cannot be done; the message names the value, the place and the remedy."""


def valid_are(valid: Iterable[str], given: str) -> str:
    """``valid are a, b, c``, and which of them was probably meant by ``given``: the end of a message about an unknown name."""
    names = list(valid)
    return f"valid are {', '.join(names) or 'none'}{did_you_mean(names, given)}"


def did_you_mean(valid: Iterable[str], given: str) -> str:
    """`` (did you mean a?)``, of the name that is most like ``given``; nothing where none is."""
    meant = get_close_matches(given, list(valid), 1)
    return f" (did you mean {meant[0]}?)" if meant else ""
