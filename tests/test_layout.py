"""The shape of the project: who imports whom, quick help, and the clash with another package called ``datasets``."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from datasets.registry import names
from mechanisms.runs.command import run_command

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("datasets", "mechanisms", "pgm", "dscm", "experiments")
COMMANDS = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for package in ORDER for path in (ROOT / package).rglob("*.py")
                  if "run_command(" in path.read_text() and '__name__ == "__main__"' in path.read_text())


def files(*packages: str) -> Iterator[tuple[Path, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Top-level packages and the lines that import them, wherever in the file, lazily by name too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.lineno, (node.module or "").split(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", node.value):
            yield node.lineno, node.value.split(".")[0]


@pytest.mark.parametrize("package", ORDER)
def test_nothing_imports_to_its_right(package):
    right = ORDER[ORDER.index(package) + 1:]
    wrong = [f"{path.relative_to(ROOT)}:{line} imports {name}" for path, tree in files(package) for line, name in imported(tree)
             if name in right and not _is_remedy(path, line)]
    assert not wrong


def _is_remedy(path: Path, line: int) -> bool:
    """A message may name the command that comes next."""
    return "python -m" in path.read_text().splitlines()[line - 1]


def modules() -> dict[str, Path]:
    """Dotted name → file, of every module of ours that is no package."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for package in ORDER for path in (ROOT / package).rglob("*.py")
            if path.name != "__init__.py"}


def imports_of(tree: ast.Module, known: Collection[str]) -> set[str]:
    """The modules among ``known`` that a file imports, inside functions too; not what only type checkers see."""
    unseen = {id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
              for statement in branch.body for node in ast.walk(statement)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & set(known)


def circles(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Modules that import each other, directly or in a circle: what is left when those that wait for nobody are taken away."""
    waiting = {name: set(imported) - {name} for name, imported in graph.items()}
    while free := [name for name, imported in waiting.items() if not imported]:
        waiting = {name: imported - set(free) for name, imported in waiting.items() if name not in free}
    return sorted(waiting)


def test_no_two_files_import_each_other():
    known = modules()
    assert circles({name: imports_of(ast.parse(path.read_text(encoding="utf-8")), known) for name, path in known.items()}) == []


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"] and circles({"a": {"b"}, "b": set()}) == []
    tree = ast.parse("if TYPE_CHECKING:\n    import a.x\ndef f():\n    from a import y\n    from a.z import thing")
    assert imports_of(tree, {"a.x", "a.y", "a.z"}) == {"a.y", "a.z"}


def test_no_floor_has_too_many_rooms():
    """Files and folders of one folder: more than about twenty cannot be taken in at a glance."""
    floors = [folder for package in ORDER for folder in [ROOT / package, *(ROOT / package).rglob("*")] if folder.is_dir()]
    rooms = {str(folder.relative_to(ROOT)): [p.name for p in folder.iterdir() if (p.suffix == ".py" and p.name != "__init__.py")
                                             or (p.is_dir() and any(p.glob("*.py")))] for folder in floors}
    assert {folder: len(found) for folder, found in rooms.items() if len(found) > 26} == {}
    assert len(rooms["experiments"]) <= 23 and len(rooms["mechanisms"]) <= 21


def test_no_data_set_is_singled_out():
    """Only ``datasets/`` knows data sets by name; elsewhere one may be a default, never a condition.

    Experiments may be about one data set; what is merged into a model may not.
    """
    wrong = []
    for path, tree in files(*ORDER[1:]):
        for node in ast.walk(tree):
            if isinstance(node, (ast.Compare, ast.Match)):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno} compares with {word}" for word in words & set(names())]
            if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("datasets.mnist", "datasets.photographs"))
                    and "experiments" not in path.parts):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports one data set")
    assert not wrong


def test_top_level_is_the_agreed_one():
    allowed = {*ORDER, "tests", "docs", "setup.cfg", "README.md", "pyproject.toml"}
    assert {p.name for p in ROOT.iterdir() if not p.name.startswith(".")} - {"runs", "build", "otherwise.egg-info"} <= allowed


# ---------------------------------------------------------------------------------------------------- help
def python(program: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=cwd, env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=60)


def test_there_are_commands():
    assert {"pgm.train", "mechanisms.train", "dscm.counterfactual"} <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_complete_and_needs_no_torch(module):
    done = python(f"""
        import runpy, sys
        sys.argv = ["python -m {module}", "--help"]
        try:
            runpy.run_module("{module}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            heavy = sorted({{"torch", "pyro", "matplotlib", "scipy", "sklearn"}} & set(sys.modules))
            print("\\nexit", end.code, "heavy", heavy)
    """, COLUMNS="90")
    assert done.stdout.endswith("exit 0 heavy []\n"), done.stdout[-300:] + done.stderr
    entries = [" ".join(entry.replace("│", " ").split()) for entry in done.stdout.split("\n│ --")[1:]]
    assert {"run", "seed", "device"} <= {re.split("[ ,]", entry)[0] for entry in entries}
    for entry in entries:
        assert re.search(r"\(default: |\(required\)|\(repeatable\)", entry), f"no default: --{entry}"


@pytest.mark.parametrize("module", ["pgm.train", "mechanisms.train"])
def test_flags_take_dashes_and_underscores(module):
    options, parsed = importlib.import_module(module).Options, []
    for spelling in ("--batch-size", "--batch_size"):
        run_command(options, parsed.append, [spelling, "6"])
    assert parsed[0] == parsed[1] != options()


@pytest.mark.parametrize("package", ORDER)
def test_importing_a_package_does_nothing(package, tmp_path):
    done = python(f"""
        import random, sys
        state = random.getstate()
        import {package}
        assert "torch" not in sys.modules and "pyro" not in sys.modules, "imports torch"
        assert state == random.getstate()
    """, cwd=tmp_path, PYTHONPATH=str(ROOT), OTHERWISE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert not done.stdout + done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ORDER[:-1])
def test_packages_offer_what_they_list(package):
    module = importlib.import_module(package)
    assert module.__all__ and all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


# ---------------------------------------------------------------------------------------------------- the name ``datasets``
@pytest.mark.parametrize("module", ["pgm.train", "mechanisms.train", "dscm.counterfactual"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_clash_of_names_is_explained(tmp_path, module, kind):
    if kind == "package":
        (tmp_path / "datasets").mkdir()
    (tmp_path / ("datasets/__init__.py" if kind == "package" else "datasets.py")).write_text("load_dataset = None\n")
    done = python(f"import runpy; runpy.run_module('{module}', run_name='__main__')", tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: 'datasets' is ") and str(tmp_path) in last
    assert f"Run commands as 'python -m …' from {ROOT}, or uninstall the other package" in last
