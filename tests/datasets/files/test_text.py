"""Tables and json files in the encodings that spreadsheets write; what is said of those that cannot be read."""

from __future__ import annotations

import pytest

from datasets.files.idx import DataError
from datasets.files.text import is_id, is_number, place_name, read_csv, read_json, read_text
from tests.errors import naming

TEXT = "a,b\r\n1,Zürich\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marks_are_no_part_of_the_first_name(tmp_path, encoding):
    path = tmp_path / "table.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_csv(path, ("a", "b")) == [(2, {"a": "1", "b": "Zürich"})]
    path.write_bytes('["Zürich"]'.encode(encoding))
    assert read_json(path) == ["Zürich"]


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_either_order_of_bytes(tmp_path, encoding):
    (tmp_path / "table.csv").write_bytes(("\ufeff" + TEXT).encode(encoding))
    assert read_csv(tmp_path / "table.csv", ("a",))[0][1]["b"] == "Zürich"
    (tmp_path / "table.csv").write_bytes(("\ufeff\ufeff\u200b" + TEXT).encode(encoding))  # tables that were put together
    assert read_csv(tmp_path / "table.csv", ("a",))[0][1]["a"] == "1"


@pytest.mark.parametrize(("content", "told"), [
    (TEXT.encode("latin-1"), "table.csv 2 UTF-8 9 0xfc"),
    (TEXT.encode("cp1252").replace(b"a", b"\x93a\x94"), "table.csv 1 0x93"),
    (b"a\0,\0b\0", "table.csv 2 UTF-16 UTF-8"),
    (TEXT.encode("utf-16")[:-1], "table.csv UTF-16"), (TEXT.encode("utf-8")[:9], "2 9"),  # in a letter
])
def test_other_encodings_are_named_with_the_place(tmp_path, content, told):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=naming(told)) as caught:
        read_csv(tmp_path / "table.csv", ("a",))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=naming("table.csv")):
        read_json(tmp_path / "table.csv")


@pytest.mark.parametrize(("text", "told"), [
    ("", "a"), ("a;b\n1;2\n", "a a;b"), ("a\tb\n1\t2\n", "a"),
    ("a,b,a\n1,2,3\n", "a 2"), ("a,b\n1,2\n3\n", "3 1 2"),
    ("a,b\n1,2,3\n", "2 3"), ('a,b\n"1,2\n3,4\n', "3"), ("a,b\n\n1,2\n,,9\n", "4 3"),
])
def test_what_is_no_table(tmp_path, text, told):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=naming(f"table.csv {told}")):
        read_csv(tmp_path / "table.csv", ("a",))


def test_what_is_a_table(tmp_path):
    """Blank lines, an index without a name, cells in quotes, commas at the end, columns that nobody asked for."""
    (tmp_path / "table.csv").write_text(',a, b ,c\n0,"1, 2",x,\n\n1,"two\nlines",y,,\n', encoding="utf-8")
    assert read_csv(tmp_path / "table.csv", ("a", "b")) == [(2, {"": "0", "a": "1, 2", "b": "x", "c": ""}),
                                                            (5, {"": "1", "a": "two\nlines", "b": "y", "c": ""})]


def test_json_that_is_none_or_without_end(tmp_path):
    for text, told in (("{", "table.json"), ("[" * 10_000 + "]" * 10_000, "table.json"), ('{"a": ' * 10_000, "table.json")):
        (tmp_path / "table.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=naming(told)):
            read_json(tmp_path / "table.json")
    with pytest.raises(DataError, match=naming(tmp_path / "absent.json")):
        read_json(tmp_path / "absent.json")
    with pytest.raises(DataError, match=naming(tmp_path)):
        read_text(tmp_path)


def test_names_of_places():
    assert [place_name(value) for value in (38, 38.0, "38", " 38 ", "38.0", "A 7", "038", -1)] == ["38"] * 5 + ["A 7", "038", "-1"]
    assert [place_name(value) for value in (None, float("nan"), True, [38], {}, "", "  ")] == [""] * 7
    assert is_number(0) and is_number(1.5) and not any(map(is_number, (True, None, "1", float("inf"), [1])))
    assert is_id("a") and is_id(3) and not is_id(False)
