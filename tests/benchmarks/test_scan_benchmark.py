"""The scan benchmark at tiny sizes: tables, JSON and picture come out, and failures stay in their rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import harness
import pytest
import scan_candidates
import selective_scan as benchmark
import torch
from scan_report import shape_table
from torch import Tensor

CPU = torch.device("cpu")
SHAPE = scan_candidates.Shape(2, 37, 6, 4)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    benchmark.main(arguments)
    return capsys.readouterr().out


def test_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, plot = tmp_path / "results.json", tmp_path / "plot.png"
    options = ["--shapes", "1x70x4x2", "--backends", "chunked", "nonsense", "--rounds", "2", "--no-memory"]
    printed = run(capsys, *options, "--json", str(results), "--plot", str(plot), "--sweep-last", "11")
    rows = json.loads(results.read_text())["rows"]
    chunked, nonsense = (row for row in rows if row["kind"] == "table")
    assert chunked["forward_ms"] > 0 and chunked["forward_backward_ms"] > 0
    assert len(chunked["times"]["forward"]) == 2
    assert set(chunked["errors"]) == {"y", "u", "delta", "A", "B", "C", "D", "z", "delta_bias"}
    assert all(0 <= error < 1e-5 for pair in chunked["errors"].values() for error in pair)
    assert "unknown selective scan backend 'nonsense'" in nonsense["failed"]
    assert "| chunked | " in printed and "| nonsense | failed | " in printed
    assert [row["shape"] for row in rows if row["kind"] == "sweep" and "forward_ms" in row] == [
        "1x1024x64x16",
        "1x2048x64x16",
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    assert run(capsys, "--from-json", str(results), "--plot", str(plot)) == printed
    assert plot.is_file()


def test_memory_of_a_fresh_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    options = ["--shapes", "1x4096x64x16", "--backends", "chunked", "--rounds", "1", "--forward-only"]
    run(capsys, *options, "--json", str(results))
    (row,) = json.loads(results.read_text())["rows"]
    assert "failed" not in row
    # At least the output, at most far less than all states.
    assert 4096 * 64 * 4 / 2 < row["peak_bytes"]["forward"] < 2**29


def test_spent_budget_is_said_in_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "--shapes", "1x8x2x2", "--backends", "naive", "--budget-s", "0")
    assert "naive failed: not measured: the time budget was spent" in printed


@pytest.mark.parametrize("content", ["", "{}", '{"benchmark": "networks"}'])
def test_json_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"other\.json"):
        benchmark.main(["--from-json", str(path)])


def test_cuda_graphs_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmark.main(["--cuda-graph"])
    assert "--cuda-graph needs --device cuda" in capsys.readouterr().err


def doubles() -> dict[str, Tensor]:
    inputs = scan_candidates.make_inputs(SHAPE, CPU, torch.float32)
    return {name: tensor.double() for name, tensor in inputs.items()}


def test_truth_in_blocks_is_that_of_naive() -> None:
    truth = scan_candidates.true_results(doubles(), backward=True, channels_at_once=4)
    expected = scan_candidates.Candidate("naive", doubles()).results("forward_backward")
    assert set(truth) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(truth[name], value, rtol=1e-10, atol=1e-12, msg=name)


def channels_first_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **others: Tensor) -> Tensor:
    """What mamba-ssm's function computes, by naive."""
    others["z"] = others["z"].transpose(1, 2)
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    return scan_candidates.selective_scan(u, delta, A, B, C, **others, backend="naive").transpose(1, 2)


def test_raw_baseline_gets_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = SimpleNamespace(selective_scan_fn=channels_first_scan)
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    raw = scan_candidates.Candidate(scan_candidates.RAW, doubles()).results("forward_backward")
    expected = scan_candidates.Candidate("naive", doubles()).results("forward_backward")
    for name, value in expected.items():
        torch.testing.assert_close(raw[name], value, msg=name)


def test_minimal_bytes() -> None:
    inputs = scan_candidates.make_inputs(SHAPE, CPU, torch.bfloat16)
    wide, narrow = 2 * 37 * 6 * 2, 2 * 37 * 4 * 2
    read = 3 * wide + 2 * narrow + 4 * (6 * 4 + 6 + 6)
    assert scan_candidates.minimal_bytes(inputs, "forward") == read + wide
    # Backward: the inputs and dy once more, a gradient for each input.
    assert scan_candidates.minimal_bytes(inputs, "forward_backward") == 3 * read + 2 * wide


def test_ratio_is_against_the_raw_baseline() -> None:
    def row(name: str, forward: float, both: float) -> harness.Row:
        size = {"forward": 4_000_000, "forward_backward": 8_000_000}
        return {"backend": name, "forward_ms": forward, "forward_backward_ms": both, "bytes": size}

    table = shape_table([row("fast", 1.0, 4.0), row("mamba_ssm", 5.0, 9.0), row("mamba-ssm", 4.0, 8.0)])
    assert "times as fast as mamba-ssm |" in table
    fast = next(line for line in table.splitlines() if "fast |" in line and "ms" not in line)
    assert fast.endswith("| 4.00 / 2.00 |") and "| 4.00 / 2.00 | - / - |" in fast  # GB/s, memory


def test_lost_gpu_starts_the_program_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        started.append(arguments)
        raise SystemExit

    def step() -> None:
        row = results.row(backend="broken")
        with harness.guarded(row, results, CPU):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lost(device: torch.device) -> None:
        raise harness.DeviceLost

    monkeypatch.setattr(harness.os, "execv", execv)
    monkeypatch.setattr(harness, "free_memory", lost)
    results = harness.Results(tmp_path / "results.json", "test", CPU, {})
    with pytest.raises(SystemExit):
        harness.run_steps([("one", step)], results, CPU, harness.Budget(100))
    assert started[0][-3:-1] == ["--resume", "--budget-s"]
    again = harness.Results(tmp_path / "results.json", "test", CPU, {}, resume=True)
    assert "illegal memory access" in again.row(backend="broken")["failed"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.012345, "0.0123"), (1.5, "1.50"), (12.0, "12.0"), (123.4, "123"), (12345.6, "12346")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert harness.number(value, 3) == text
