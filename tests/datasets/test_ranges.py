"""Which values options may have: the ranges, their message, and that every command's options are looked at."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, get_type_hints

import numpy as np
import pytest

from datasets.errors import UserError
from datasets.ranges import Draws, Positive, Range, Share, check_ranges, within
from dscm.evaluation.config import EvaluationConfig
from dscm.finetuning.config import FinetuneConfig
from experiments.algorithms.registry import ALGORITHMS
from experiments.networks.config import ClassifierConfig
from experiments.training.options import TrainingFlags
from mechanisms.anticausal.config import PredictorConfig
from mechanisms.experts.options import ExpertsConfig
from mechanisms.image.config import ImageConfig
from mechanisms.runs.command import run_command
from mechanisms.training.config import TrainingConfig
from pgm.scm import AttributeConfig
from tests.test_layout import COMMANDS

CONFIGS = (TrainingConfig, ImageConfig, PredictorConfig, AttributeConfig, FinetuneConfig, EvaluationConfig, ExpertsConfig, ClassifierConfig,
           TrainingFlags, *dict.fromkeys(kind.settings for kind in ALGORITHMS.values()))


@dataclass(frozen=True)
class Inner:
    rate: Positive[float | None] = None


@dataclass(frozen=True)
class Given:
    inner: Inner = Inner()
    share: Share[tuple[float, ...]] = (0.5, 1)
    draws: Draws[int] = 0
    steps: within(2, 8, multiple=2)[int] = 2
    any_number: float = 0.0
    plain: int = 0
    flag: bool = False
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(("given", "named"), [
    (Given(Inner(0.0)), "--rate 0.0 must be positive"), (Given(Inner(math.inf)), "--rate inf must be positive, and finite"),
    (Given(share=(0.1, 1.5)), r"--share 1.5 must lie in \[0, 1\]"), (Given(share=(math.nan,)), "--share nan"),
    (Given(draws=1), r"--draws 1 must be 0, or lie in \[2, 10000\]: one draw"), (Given(steps=3), "--steps 3 .* even"),
    (Given(steps=10), "--steps 10"),
    (Given(any_number=-math.inf), "--any-number -inf"), (Given(any_number="3"), "--any-number '3' must be a number"),
    (Given(plain=True), "--plain True must be a whole number"), (Given(plain=1.5), "--plain 1.5 must be a whole number"),
    (Given(plain=10**23), "--plain 1.*0 must fit"), (Given(plain=10**400), "--plain 1.*0 must fit"),
    (Given(flag="no"), "--flag no must be true"),
    (Given(kind="c"), "--kind c is unknown; valid are a, b")])
def test_what_is_refused_is_named_with_its_value_and_its_range(given, named):
    with pytest.raises(UserError, match=named):
        check_ranges(given)


def test_what_lies_within_passes():
    check_ranges(Given())
    check_ranges(Given(Inner(1), [0, 1], np.int64(2), 8, np.float32(3), -2**63, True, "b"))


def test_a_range_says_what_it_holds():
    assert [str(r) for r in (Range(0), Range(0, above=True), Range(1), Range(0, 1, below=True))] == [
        "not be negative", "be positive", "be at least 1", "lie in [0, 1)"]
    assert Range(0, 1, below=True).holds(0) and not Range(0, 1, below=True).holds(1) and not Range(0).holds(math.nan)


def numbers(kind: type) -> list[str]:
    """Fields of a dataclass that are one number, or may be."""
    hints = get_type_hints(kind)
    return [f.name for f in fields(kind) if {hints[f.name], *getattr(hints[f.name], "__args__", ())} & {int, float}]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda kind: kind.__name__)
def test_no_number_of_any_configuration_is_nan_infinite_or_minus_one(config):
    for name in numbers(config):
        for value in (math.nan, math.inf, -1, True, 10**23):
            wrong = (value,) if isinstance(getattr(config(), name), tuple) else value
            with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}"):
                check_ranges(replace(config(), **{name: wrong}))


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_refuses_senseless_numbers_before_it_begins(module, capsys):
    options, begun = getattr(importlib.import_module(module), "Options", None), []
    if options is None:
        options = importlib.import_module(f"{module.removesuffix('.__main__')}.options").Options
    nested = {f.name: hint for f in fields(options) if is_dataclass(hint := get_type_hints(options)[f.name])}
    for kind in (options, *nested.values()):
        for name in numbers(kind):
            flag = f"--{name.replace('_', '-')}"
            whole = float not in {(hint := get_type_hints(kind)[name]), *getattr(hint, "__args__", ())}
            with pytest.raises(SystemExit) as stop:
                run_command(options, begun.append, [flag, value := "-1" if whole else "nan"])
            last = capsys.readouterr().err.strip().splitlines()[-1]
            assert stop.value.code == 2 and last.startswith(f"error: {flag} {value} must"), last
    assert not begun


def test_another_default_keeps_the_range():
    @dataclass(frozen=True)
    class Faster(Inner):
        rate: float | None = 9.0

    check_ranges(Faster())
    with pytest.raises(UserError, match="--rate -1"):
        check_ranges(Faster(-1))
