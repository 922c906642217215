"""Errors that a user can act upon: commands print them as one line, without a traceback."""


class UserError(ValueError):
    """Something that was asked for cannot be done; the message names the value, the place and the remedy."""
