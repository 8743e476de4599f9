"""The doctor: healthy here, not healthy with a broken backend, what it says of versions and broken extensions."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts import doctor
from scripts.ops import selective_scan as ops
from scripts.ops.selective_scan import check
from scripts.ops.selective_scan.cuda_extensions import CAUSAL_CONV1D, MAMBA_SSM, CudaExtension, import_failure

BUNDLE = Path(doctor.__file__).parents[1]
SYMBOL = "_ZN3c104cuda9SetDeviceEab"
UNDEFINED = f"/x/selective_scan_cuda.so: undefined symbol: {SYMBOL}"
NO_LIBRARY = "libcudart.so.12: cannot open shared object file"


@pytest.fixture(autouse=True)
def short_sequences(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Checks within this process take a moment only; a doctor in a process of its own does all of its work."""
    monkeypatch.setattr(check, "LENGTH", 45)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # it would check Triton's interpreter too, for minutes
    check._truth.cache_clear()
    yield
    check._truth.cache_clear()


def run_doctor(*arguments: str, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, `packages` first on the path."""
    command = [sys.executable, "-m", "scripts.doctor", *arguments]
    environment = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
    return subprocess.run(
        command, cwd=BUNDLE, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_healthy_here() -> None:
    result = run_doctor("--device", "cpu", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["healthy"] and report["versions"]["torch"] == torch.__version__
    assert report["backend"] == ops.choose_backend("cpu")
    assert report["backends"] == ops.backend_report("cpu")
    able = [name for name, reason in report["backends"].items() if reason is None]
    assert {scan["backend"] for scan in report["checks"]} == set(able)
    assert {scan["dtype"] for scan in report["checks"] if scan["backend"] == "chunked"} == set(check.TOLERANCE)
    assert report["exit_status"] == 0


def test_report_for_people_names_the_backend_and_the_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(ops.choose_backend("cpu") in line and "taken by backend='auto'" in line for line in lines)
    assert sum(line.strip().startswith("chunked, ") and line.endswith("ok") for line in lines) == 3
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


def put_backend(monkeypatch: pytest.MonkeyPatch, name: str, scan: object) -> None:
    monkeypatch.setitem(ops._BACKENDS, name, SimpleNamespace(unavailable=lambda device: None, scan=scan))


def slightly_wrong(u: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    y, state = ops.naive.scan(u, *arguments)
    return y * 1.001, state


def crash(*arguments: object) -> None:
    raise RuntimeError("no kernel image")


def test_wrong_backend_is_not_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = ops.choose_backend("cpu")
    put_backend(monkeypatch, name, slightly_wrong)
    assert doctor.main(["--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert f"PROBLEM  backend {name} disagrees with naive in float64" in output
    assert output.endswith("Not healthy.\n")


def test_crashing_backend_is_not_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = ops.choose_backend("cpu")
    put_backend(monkeypatch, name, crash)
    assert doctor.main(["--device", "cpu"]) == 1
    output = capsys.readouterr().out
    assert f"PROBLEM  backend {name} fails in float32 on cpu: RuntimeError: no kernel image" in output


@pytest.mark.parametrize("scan", [slightly_wrong, crash])
def test_other_backend_that_fails_is_a_warning_unless_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scan: object
) -> None:
    put_backend(monkeypatch, "extra", scan)
    assert doctor.main(["--device", "cpu"]) == 0
    assert "WARNING  backend extra " in capsys.readouterr().out
    assert doctor.main(["--device", "cpu", "--require", "extra"]) == 3
    output = capsys.readouterr().out
    assert "PROBLEM  backend extra " in output and "The backend extra does not run." in output


def test_backend_without_float64_is_checked_in_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def single(u: torch.Tensor, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        if u.dtype == torch.float64:
            raise ValueError("takes no float64")
        return ops.naive.scan(u, *arguments)

    put_backend(monkeypatch, "extra", single)
    checks = check.check_backend("extra", "cpu")
    assert [scan.dtype for scan in checks] == ["float32", "bfloat16"]
    assert all(scan.passed for scan in checks)


def test_required_backend_that_runs() -> None:
    assert doctor.main(["--device", "cpu", "--require", "chunked"]) == 0


def test_unknown_required_backend_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        doctor.main(["--require", "magic"])
    assert exit_.value.code == 2
    assert "no such backend; choose from" in capsys.readouterr().err


def test_exit_codes_are_in_the_help_and_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["--help"])
    documented = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    for status in (0, 1, 2, 3):
        assert f"\n  {status}  " in shown and f"\n| {status} | " in documented


def test_nan_does_not_pass() -> None:
    assert not check.ScanCheck("naive", "float32", math.nan, 0.0, 1.0).passed
    assert not check.ScanCheck("naive", "float32", 0.0, math.nan, 1.0).passed
    assert not check.ScanCheck("naive", "float32", None, None, 1.0, "RuntimeError").passed
    assert check.ScanCheck("naive", "float32", 0.5, 1.0, 1.0).passed


def make_packages(folder: Path, **files: str) -> None:
    """Modules with this content; a double underscore in a name stands for a dot."""
    for name, content in files.items():
        path = folder.joinpath(*name.split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".py").write_text(content)


MAMBA_FILES = {
    "mamba_ssm__ops__selective_scan_interface": "import selective_scan_cuda\nselective_scan_fn = None\n",
}


def test_undefined_symbol_is_named_with_its_cure(tmp_path: Path) -> None:
    make_packages(tmp_path, **MAMBA_FILES, selective_scan_cuda=f"raise ImportError({UNDEFINED!r})\n")
    result = run_doctor("--device", "cpu", "--json", packages=tmp_path)
    report = json.loads(result.stdout)
    assert result.returncode == 0 and "BROKEN" in report["extensions"]["mamba-ssm"]
    (warning,) = (line for line in report["warnings"] if "selective_scan_cuda" in line)
    assert f"built for another torch than the installed one: undefined symbol {SYMBOL}" in warning
    for part in ("MAMBA_FORCE_BUILD=TRUE", "--no-build-isolation", "--no-cache-dir", "--force-reinstall"):
        assert part in warning
    required = run_doctor("--device", "cpu", "--require", "mamba_ssm", packages=tmp_path)
    assert required.returncode == 3
    assert any(line.startswith("PROBLEM") and SYMBOL in line for line in required.stdout.splitlines())


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules to import; what was imported from it is forgotten afterwards."""
    if any(importlib.util.find_spec(name) for name in ("selective_scan_cuda", "causal_conv1d_cuda")):
        pytest.skip("the real packages are installed")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_failure.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    import_failure.cache_clear()


@pytest.mark.parametrize(
    ("extension", "files", "reason", "cure"),
    [
        (MAMBA_SSM, MAMBA_FILES, "only the Python part of mamba-ssm is installed", "MAMBA_KEEP_CUDA_BUILD=TRUE"),
        (
            MAMBA_SSM,
            {**MAMBA_FILES, "selective_scan_cuda": f"raise ImportError({NO_LIBRARY!r})"},
            "built for another torch or CUDA than the installed: libcudart.so.12 is missing",
            "MAMBA_FORCE_BUILD=TRUE",
        ),
        (
            MAMBA_SSM,
            {"mamba_ssm__ops__selective_scan_interface": "import a_missing_package", "selective_scan_cuda": ""},
            "mamba-ssm needs the package a_missing_package",
            "pip install a_missing_package",
        ),
        (
            CAUSAL_CONV1D,
            {"causal_conv1d": "import causal_conv1d_cuda", "causal_conv1d_cuda": f"raise ImportError({UNDEFINED!r})"},
            f"undefined symbol {SYMBOL}",
            "CAUSAL_CONV1D_FORCE_BUILD=TRUE",
        ),
        (
            CAUSAL_CONV1D,
            {"causal_conv1d": "raise RuntimeError('odd')", "causal_conv1d_cuda": ""},
            "causal-conv1d cannot be imported (RuntimeError: odd)",
            "--no-deps",
        ),
    ],
)
def test_import_failures_are_explained(
    packages: Path, extension: CudaExtension, files: dict[str, str], reason: str, cure: str
) -> None:
    make_packages(packages, **files)
    importlib.invalidate_caches()
    failure = import_failure(extension)
    assert failure is not None
    assert reason in failure.reason and cure in failure.cure


def test_extension_that_imports_is_no_failure(packages: Path) -> None:
    make_packages(packages, **MAMBA_FILES, selective_scan_cuda="")
    importlib.invalidate_caches()
    assert import_failure(MAMBA_SSM) is None


def test_torch_that_does_not_import(tmp_path: Path) -> None:
    make_packages(tmp_path, torch="raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    result = run_doctor("--require", "chunked", packages=tmp_path)
    assert result.returncode == 3
    assert "PROBLEM  torch cannot be imported" in result.stdout


@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["--require", "chunked"], 3)])
def test_torch_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "torch" else installed(name))
    assert doctor.main(arguments) == status
    assert "not installed: pip install torch" in capsys.readouterr().out


def test_missing_numba_is_a_note(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "numba" else installed(name))
    missing = SimpleNamespace(unavailable=lambda device: "numba is not installed")
    monkeypatch.setattr(ops, "_BACKENDS", {"numba": missing, "chunked": ops.chunked, "naive": ops.naive})
    assert doctor.main(["--device", "cpu"]) == 0
    assert "takes chunked instead; pip install numba" in capsys.readouterr().out


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """tifffile is known from metadata.json alone."""
    installed, missing = doctor.installed_version, ("nibabel", "tifffile")
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name in missing else installed(name))
    assert doctor.main(["--device", "cpu"]) == 1
    assert "not installed: pip install nibabel tifffile" in capsys.readouterr().out


def test_a_broken_bundle_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "METADATA", tmp_path / "metadata.json")
    assert doctor.main(["--device", "cpu"]) == 1
    assert "metadata.json cannot be read" in capsys.readouterr().out


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
