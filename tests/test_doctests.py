"""The examples in docstrings say what happens: every one is run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = ("datasets", "mechanisms", "pgm", "dscm", "experiments")
PROMISED = {"datasets.schema", "pgm.interventions", "pgm.scm", "dscm.model", "mechanisms.flows", "mechanisms.discrete"}


def with_examples() -> list[str]:
    """Modules of ours whose source has a prompt; the others need not be imported."""
    names = [package for package in PACKAGES if find_spec(package)]
    for package in list(names):
        names += [m.name for m in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
                  if not m.name.endswith("__main__")]
    return [name for name in names if ">>> " in Path(find_spec(name).origin).read_text(encoding="utf-8")]


MODULES = with_examples()


def test_public_modules_have_examples():
    assert {name.rsplit(".", 1)[1] for name in PROMISED} <= {name.rsplit(".", 1)[1] for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    told: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, module = doctest.DocTestRunner(optionflags=flags), importlib.import_module(name)
    for example in doctest.DocTestFinder().find(module):
        runner.run(example, out=told.append)
    assert runner.tries and not runner.failures, "".join(told)
