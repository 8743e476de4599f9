"""Summaries and files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from scripts.metrics import format_summary, metric_columns, summarize, write_csv, write_json

ROWS = [
    {"case": "1", "class": "a", "file": "1.png", "dice": 0.5, "hd95": 2.0, "area_px": 4.0},
    {"case": "2", "class": "a", "file": "2.png", "dice": 0.9, "hd95": math.nan, "area_px": 6.0},
    {"case": "3", "class": "a", "file": "3.png", "dice": 0.7, "hd95": math.nan, "area_px": 8.0},
    {"case": "1", "class": "b", "file": "1.png", "dice": math.nan, "hd95": math.nan, "area_px": 0.0},
]


def test_undefined_values_are_counted_not_averaged() -> None:
    summary = summarize(ROWS)
    assert summary["a"]["dice"] == pytest.approx({"mean": 0.7, "sd": 0.2, "median": 0.7, "defined": 3, "cases": 3})
    assert summary["a"]["hd95"]["defined"] == 1 and summary["a"]["hd95"]["cases"] == 3
    assert summary["a"]["hd95"]["mean"] == 2 and math.isnan(summary["a"]["hd95"]["sd"])
    assert summary["b"]["dice"]["defined"] == 0 and math.isnan(summary["b"]["dice"]["median"])
    assert summarize([]) == {}


def test_table() -> None:
    table = format_summary(3, summarize(ROWS), ["dice", "hd95"])
    assert "3 cases" in table and "0.7000 ± 0.2000" in table
    assert "2.0000" in table and "± nan" not in table, "one value has no SD"


def test_columns_stay_apart_where_distances_are_large() -> None:
    far = [{"case": str(i), "class": "a", "dice": 0.1, "hd95": 124.0 + 30 * i} for i in range(2)]
    titles, row = format_summary(2, summarize(far), ["dice", "hd95"]).splitlines()[1:]
    assert "0.0000  139.0000" in row and len(titles) == len(row)


def test_csv(tmp_path: Path) -> None:
    assert metric_columns(ROWS) == ["dice", "hd95", "area_px"]
    write_csv(tmp_path / "m.csv", ROWS)
    with (tmp_path / "m.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["case", "class", "dice", "hd95", "area_px", "file"]
    assert float(read[1]["dice"]) == 0.9 and math.isnan(float(read[1]["hd95"])) and len(read) == 4


def test_json_has_null_for_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"a": [math.nan, 1.5, (math.inf, "é")]})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"a": [None, 1.5, [None, "é"]]}
    assert list(tmp_path.iterdir()) == [tmp_path / "m.json"]
