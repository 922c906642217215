"""What the fields of a dataclass mean: the string that follows each in the source. Imports no torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields


def field_help(kind: type) -> dict[str, str]:
    """Field → its docstring as one line, of the class or of those that it inherits from; empty where there is none."""
    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return {f.name: texts.get(f.name, "") for f in fields(kind)}
