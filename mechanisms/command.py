"""What all commands share: flags from a typed dataclass, errors as one line, an interrupt that loses nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from datasets.errors import UserError

Options = TypeVar("Options")


def run_command(options: type[Options], main: Callable[[Options], None], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line into ``options`` (its docstring is the help text) and call ``main`` with it.

    Exit status: 0, or 2 for what the user can mend, or 130 after an interrupt.
    """
    parsed = tyro.cli(options, args=arguments, description=options.__doc__, config=(tyro.conf.OmitArgPrefixes,))
    try:
        main(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
