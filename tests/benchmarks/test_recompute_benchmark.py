"""The benchmark of recomputing against keeping, at a tiny size."""

from __future__ import annotations

from pathlib import Path

import pytest
import recompute as benchmark


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    benchmark.main(["--device", "cpu", "--shapes", "1x1x8x8x8", "--rounds", "1", "--json", str(results)])
    printed = capsys.readouterr().out
    benchmark.main(["--from-json", str(results)])
    assert capsys.readouterr().out == printed
    shape, *figures = printed.splitlines()[-1].strip("| ").split(" | ")
    assert shape == "1x1x8x8x8"
    assert all(float(figure) > 0 for figure in figures[:3]) and figures[3:] == ["-", "-"]


def test_what_the_budget_does_not_reach_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--device", "cpu", "--shapes", "1x1x8x8x8", "--budget-s", "0"])
    assert capsys.readouterr().out.endswith("| 1x1x8x8x8 | - | - | - | - | - |\n")
