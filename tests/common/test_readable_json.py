"""JSON for people: the same content, short things on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.common.errors import UserError
from scripts.common.readable_json import read_json, readable_json, without_nan, write_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))
def test_content_is_kept(value: object) -> None:
    assert json.loads(readable_json(value)) == value


def test_looks(tmp_path: Path) -> None:
    many = {f"organ_{i}": i for i in range(20)}
    write_json(tmp_path / "new" / "a.json", {"spacing": [1.0, 1.0], "labels": many, "regions": {}})
    lines = (tmp_path / "new" / "a.json").read_text().splitlines()
    assert lines[:4] == ["{", '    "spacing": [1.0, 1.0],', '    "labels": {', '        "organ_0": 0,']
    assert lines[-2:] == ['    "regions": {}', "}"]


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError):
        readable_json({"a": [float("nan")]})


def test_nan_becomes_null() -> None:
    value = {"a": [1.5, float("nan")], "b": {"c": float("inf"), "d": (0, "x")}}
    assert without_nan(value) == {"a": [1.5, None], "b": {"c": None, "d": [0, "x"]}}


def test_every_system_reads_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"Größe": ["脑"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="ascii")) == {"Größe": ["脑"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must hold an object {…}, not list"),
        (b"null", "must hold an object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_json(tmp_path / "a.json", advice="remove it")
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/a.json {said}") and message.endswith(": remove it") and "\n" not in message


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "a.json") == {}
    with pytest.raises(UserError, match=r"b\.json cannot be read: No such file"):
        read_json(tmp_path / "b.json")
