"""The doctor: healthy here, not healthy with a broken backend, and what it says about versions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts import doctor
from scripts.ops import selective_scan as ops

BUNDLE = Path(doctor.__file__).parents[1]


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.doctor", *arguments]
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, timeout=120, check=False)


def test_healthy_here() -> None:
    result = run_doctor("--device", "cpu", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["healthy"] and report["versions"]["torch"] == torch.__version__
    assert report["backend"] == ops.choose_backend("cpu")
    assert report["backends"] == ops.backend_report("cpu")
    assert {check["dtype"] for check in report["checks"]} == {"float32", "float64"}


def test_report_for_people_names_the_backend_and_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(ops.choose_backend("cpu") in line and "taken by backend='auto'" in line for line in lines)
    assert sum("allowed" in line and line.endswith("ok") for line in lines) == 2
    assert lines[-1] == "Healthy."


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_healthy_on_the_gpu() -> None:
    result = run_doctor("--device", "cuda", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cuda:0" in json.loads(result.stdout)["devices"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cuda"]) == 1
    assert "torch sees no GPU" in capsys.readouterr().out


def break_backend(monkeypatch: pytest.MonkeyPatch, scan: object) -> str:
    """Put ``scan`` in the place of the CPU's chosen backend; returns its name."""
    name = ops.choose_backend("cpu")
    broken = SimpleNamespace(unavailable=lambda device: None, scan=scan)
    monkeypatch.setitem(ops._BACKENDS, name, broken)
    return name


def test_wrong_backend_is_not_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    truth = ops._BACKENDS["naive"].scan

    def slightly_wrong(u: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = truth(u, *arguments)
        return y * 1.001, state

    name = break_backend(monkeypatch, slightly_wrong)
    assert doctor.main(["--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert f"backend {name} disagrees with naive in float64" in output
    assert output.endswith("Not healthy.\n")


def test_crashing_backend_is_not_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*arguments: object) -> None:
        raise RuntimeError("no kernel image")

    name = break_backend(monkeypatch, crash)
    assert doctor.main(["--device", "cpu"]) == 1
    assert f"backend {name} fails in float32 on cpu: RuntimeError: no kernel image" in capsys.readouterr().out


def test_nan_does_not_pass() -> None:
    assert not doctor.ScanCheck("float32", math.nan, 0.0, 1.0).passed
    assert not doctor.ScanCheck("float32", 0.0, math.nan, 1.0).passed
    assert doctor.ScanCheck("float32", 0.5, 1.0, 1.0).passed


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "nibabel" else installed(name))
    assert doctor.main(["--device", "cpu"]) == 1
    assert "not installed: pip install nibabel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("python", "torch_version", "warned"),
    [
        ((3, 10), "2.4.0", []),
        ((3, 13), "2.13.0+cpu", []),
        ((3, 9), "2.13.0", ["Python 3.9"]),
        ((3, 14), "2.3.1", ["Python 3.14", "torch 2.3.1"]),
    ],
)
def test_unsupported_versions_are_warned_about(python: tuple[int, int], torch_version: str, warned: list[str]) -> None:
    lines = doctor.version_warnings(python, torch_version)
    assert len(lines) == len(warned)
    assert all(line.startswith(start) for line, start in zip(lines, warned, strict=True))
