"""JSON for people: the same content, short things on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.data.readable_json import readable_json, without_nan, write_json

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
