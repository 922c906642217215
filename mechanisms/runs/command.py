"""What all commands share: flags from a typed dataclass, errors as one line, an interrupt that loses nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from datasets.errors import UserError, shown
from datasets.ranges import check_ranges

Options = TypeVar("Options")


def _switched(words: list[str]) -> bool:
    if words not in ([], ["true"], ["false"]):
        raise ValueError(f"give nothing, true or false, not {' '.join(words)}")
    return words != ["false"]


# ``--flag``, ``--flag true`` or ``--flag false``; None where it is not given, so that a recipe can say
Switch = Annotated[bool | None, PrimitiveConstructorSpec(
    nargs="*", metavar="[{true,false}]", instance_from_str=_switched, is_instance=lambda value: value is None or isinstance(value, bool),
    str_from_instance=lambda value: [str(value).lower()])]


def run_command(options: type[Options], main: Callable[[Options], None], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line into ``options`` (its docstring is the help text) and call ``main`` with it.

    Exit status: 0, or 2 for what the user can mend, or 130 after an interrupt.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--"]:  # 'torchrun … -m mechanisms.train -- --run R': some versions of Python pass the separator on
        given = given[1:]
    try:
        parsed = tyro.cli(options, prog=_program(), args=given, description=options.__doc__, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if stop.code:  # tyro has said what is wrong, and guessed what was meant
            print(f"valid flags: {', '.join(flags(options))}", file=sys.stderr)
        raise
    try:
        check_ranges(parsed)  # before anything heavy is imported
        with _warnings_as_lines():
            main(parsed)
    except UserError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _program() -> str | None:
    """``python -m …`` as it was typed, for help and errors; None where a script runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """What is warned of is one line, said once, without the place in the program; what a filter asked for stays as it is."""
    before, said = warnings.formatwarning, set()

    def line(message: Warning | str, category: type[Warning], *place: Any, **source: Any) -> str:
        if category is not UserWarning:
            return before(message, category, *place, **source)
        if (text := shown(message)) in said:  # the filter "once" is once a module
            return ""
        said.add(text)
        return f"warning: {text}\n"

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def flags(options: type) -> list[str]:
    """All flags of a command, those of nested groups and other names included, as a user types them."""
    hints, full, found = get_type_hints(options), get_type_hints(options, include_extras=True), []
    for field in fields(options):
        kind = hints[field.name]
        found += flags(kind) if is_dataclass(kind) else [f"--{field.name.replace('_', '-')}"]
        found += [alias for extra in getattr(full[field.name], "__metadata__", ()) for alias in getattr(extra, "aliases", None) or ()]
    return sorted(found)
