"""Lists with commas between, and one text as a value of a field's type."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from datasets.errors import UserError
from datasets.words import convert, listed, listed_numbers
from tests.errors import naming


def test_lists():
    assert listed(" a, b ", "--names") == ["a", "b"] and listed(" ", "--names") == []
    assert listed_numbers("3, 17", "--rows") == [3, 17] and listed_numbers(".5,1e0", "--shares", float) == [0.5, 1.0]


@pytest.mark.parametrize(("text", "named"), [
    ("a,b,a", "--names a"), ("a,,b", "--names 'a,,b' 1 2"), ("a,", "--names 'a,'"),
    (",a", "--names ',a'"), ("a,c", "--names a,c 'c' a b")])
def test_lists_that_are_refused(text, named):
    with pytest.raises(UserError, match=naming(named)):
        listed(text, "--names", ("a", "b"))


@pytest.mark.parametrize(("text", "named"), [("3,3", "--rows 3"), ("3,03", "--rows 3"),
                                             ("3,x", "--rows '3,x'"),
                                             ("1.5", "--rows '1.5'")])
def test_numbers_that_are_refused(text, named):
    with pytest.raises(UserError, match=naming(named)):
        listed_numbers(text, "--rows")


@pytest.mark.parametrize(("text", "hint", "value"), [
    ("3", int, 3), ("3", float, 3.0), ("0.5", int | float, 0.5), ("TRUE", bool, True), ("0", bool, False), ("none", float | None, None),
    ("a/b", Path | None, Path("a/b")), ("none", str, "none"), ("b", Literal["a", "b"], "b"), ("5", str, "5")])
def test_a_text_becomes_the_fields_type(text, hint, value):
    found = convert(text, hint, "--set x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("text", "hint", "named"), [
    ("many", int, "--set x 'many'"), ("x", float | None, "--set x 'x'"),
    ("maybe", bool, "--set x 'maybe'"),
    ("c", Literal["a", "b"], "'c' a b"), ("1,2", tuple[int, ...], "--set x")])
def test_a_text_of_another_type_is_refused(text, hint, named):
    with pytest.raises(UserError, match=naming(named)):
        convert(text, hint, "--set x")
