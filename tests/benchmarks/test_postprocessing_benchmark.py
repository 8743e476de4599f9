"""The postprocessing benchmark at a tiny size: all candidates agree."""

from __future__ import annotations

import json
from pathlib import Path

import postprocessing as benchmark
import pytest


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    benchmark.main(["--size", "40", "--labels", "3", "--rounds", "1", "--json", str(results)])
    printed = capsys.readouterr().out
    rows = json.loads(results.read_text())["rows"]
    assert {row["job"] for row in rows} == set(benchmark.JOBS)
    for row in rows:
        if "cc3d" not in row["name"]:  # need not be installed
            assert "failed" not in row and row["time_ms"] > 0, row
        if row["job"] != "holes":
            assert row.get("difference", 0) < 1e-4, row
    assert "3 labels at 40^3" in printed and "| Largest component of each label |" in printed
    benchmark.main(["--from-json", str(results)])
    assert capsys.readouterr().out == printed
