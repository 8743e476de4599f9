"""The export's benchmark with a network of two stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import export as benchmark
import pytest

from scripts.networks import LightMUNet


def tiny(_: int) -> tuple[Any, tuple[int, ...]]:
    return LightMUNet(2, 1, 2, 8, (1, 1), (1,), conv_stages=1), (8, 8)


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.NETWORKS, "tiny", tiny)
    results = tmp_path / "results.json"
    benchmark.main(["--networks", "tiny", "--threads", "1", "--rounds", "2", "--json", str(results)])
    printed = capsys.readouterr().out
    (row,) = json.loads(results.read_text())["rows"]
    assert 0 < row["error"] < 1e-5 and row["shape"] == "1x1x8x8" and row["nodes"] > 100
    assert len(row["times"]["torch"]) == len(row["times"]["onnx"]) == 2 and row["export_cpu_s"] > 0
    assert "| tiny | 1x1x8x8 |" in printed and "onnxruntime 1." in printed
    benchmark.main(["--from-json", str(results)])
    assert capsys.readouterr().out == printed
