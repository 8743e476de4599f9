"""Say whether this machine is fit to run the bundle, and which selective-scan backend really runs on it.

``python -m scripts.doctor [--device cpu|cuda] [--json]`` lists versions and devices, why each scan backend is
or is not taken, and checks the taken one, forward and backward, against the specification (naive) in float64.
Exit status 0: healthy, 1: something is broken, each with a line that says what to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# torch and what imports it are imported inside functions: a doctor must be able to say that torch is missing.

__all__ = ["Report", "ScanCheck", "check_scan", "diagnose", "format_report", "main"]

PYTHONS = ((3, 10), (3, 13))  # first and last supported
MINIMUM_TORCH = (2, 4)
REQUIRED = ("torch", "monai", "pytorch-ignite", "nibabel", "numpy", "scikit-image")
# Largest relative error that counts as agreement with naive in float64, by the dtype of the checked run.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@dataclass(frozen=True)
class ScanCheck:
    """Largest error of a backend's output and of its gradients, each relative to the largest true value."""

    dtype: str
    output_error: float
    gradient_error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN as well."""
        return self.output_error <= self.tolerance and self.gradient_error <= self.tolerance


@dataclass
class Report:
    """All that the doctor found; ``problems`` make a machine unhealthy, ``warnings`` do not."""

    versions: dict[str, str | None] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    backend: str | None = None
    backends: dict[str, str | None] = field(default_factory=dict)
    checks: list[ScanCheck] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.problems


def installed_version(package: str) -> str | None:
    """Version of an installed package, None without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version_warnings(python: tuple[int, int], torch_version: str | None) -> list[str]:
    """A line for each version that the bundle does not support."""
    lines = []
    first, last = (".".join(map(str, version)) for version in PYTHONS)
    if not PYTHONS[0] <= python <= PYTHONS[1]:
        lines.append(f"Python {python[0]}.{python[1]} is not supported: use {first} to {last}")
    numbers = re.findall(r"\d+", torch_version or "")[:2]
    if numbers and tuple(map(int, numbers)) < MINIMUM_TORCH:
        minimum = ".".join(map(str, MINIMUM_TORCH))
        lines.append(f"torch {torch_version} is too old: pip install 'torch>={minimum}'")
    return lines


def describe_devices() -> dict[str, str]:
    """Name -> description of the CPU and of each CUDA GPU that torch sees; memory in GiB."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = f"{torch.get_num_threads()} threads in torch, {os.cpu_count()} logical cores"
    devices = {"cpu": f"{_cpu_model()}, {threads}, {memory:.1f} GiB"}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        devices[f"cuda:{index}"] = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, {capability}"
    if "cuda:0" not in devices:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        devices["cuda"] = f"none usable ({built})"
    return devices


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def check_scan(backend: str, device: str, dtype_name: str, length: int = 777) -> ScanCheck:
    """Run a backend forward and backward and compare it with naive in float64 on the CPU.

    Args:
        backend: a name that ``backend_report`` lists.
        device: where the backend runs.
        dtype_name: "float64" or "float32".
        length: of the sequence; no multiple of any chunk by default.
    """
    import torch

    inputs = _scan_inputs(length)
    true_output, true_gradients = _run_scan(inputs, "naive", "cpu", torch.float64)
    output, gradients = _run_scan(inputs, backend, device, getattr(torch, dtype_name))
    gradient_error = max(_relative_error(gradients[name], true_gradients[name]) for name in inputs)
    return ScanCheck(dtype_name, _relative_error(output, true_output), gradient_error, TOLERANCE[dtype_name])


def _scan_inputs(length: int, batch: int = 2, channels: int = 5, state: int = 16) -> dict[str, torch.Tensor]:
    """Arguments such as a freshly initialised Mamba layer sees: decays from 1 to 16, steps around 0.05."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        # Drawn as float32, so that both precisions start from the same numbers.
        return torch.randn(shape, generator=generator).double()

    return {
        "u": normal(batch, length, channels),
        "delta": 0.5 * normal(batch, length, channels),
        "A": -torch.arange(1.0, state + 1).double().repeat(channels, 1),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": 0.5 * normal(channels) - 3,
    }


def _run_scan(
    inputs: dict[str, torch.Tensor], backend: str, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and the gradient of the sum of its squares for each argument, as float64 on the CPU."""
    import torch

    from .ops.selective_scan import selective_scan

    arguments = {name: value.to(device, dtype).requires_grad_() for name, value in inputs.items()}
    output = selective_scan(**arguments, delta_softplus=True, backend=backend)
    gradients = torch.autograd.grad(output.square().sum(), list(arguments.values()))
    results = [tensor.detach().double().cpu() for tensor in (output, *gradients)]
    return results[0], dict(zip(arguments, results[1:], strict=True))


def _relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value - truth).abs().max() / truth.abs().max())


def diagnose_scan(report: Report) -> None:
    """Fill in the backends, the chosen one and its checks; a failure becomes a problem."""
    from .ops.selective_scan import backend_report, choose_backend

    report.backends = backend_report(report.device)
    report.backend = choose_backend(report.device)
    for dtype_name in TOLERANCE:
        try:
            check = check_scan(report.backend, report.device, dtype_name)
        except Exception as error:  # whatever a broken backend raises is the finding
            reason = str(error).strip().splitlines() or ["no message"]
            report.problems.append(
                f"backend {report.backend} fails in {dtype_name} on {report.device}: "
                f"{type(error).__name__}: {reason[0]}; another can be set as the network's backend"
            )
            continue
        report.checks.append(check)
        if not check.passed:
            report.problems.append(
                f"backend {report.backend} disagrees with naive in {dtype_name} on {report.device}: do not "
                "trust its results; set another as the network's backend and report this output"
            )


def diagnose(device: str | None = None) -> Report:
    """Look at everything.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is a GPU.
    """
    report = Report(versions={"python": platform.python_version()})
    report.versions |= {package: installed_version(package) for package in REQUIRED}
    report.warnings = version_warnings(sys.version_info[:2], report.versions["torch"])
    missing = [package for package in REQUIRED if report.versions[package] is None]
    if missing:
        report.problems.append(f"not installed: pip install {' '.join(missing)}")
    if "torch" in missing:
        return report

    import torch

    report.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    report.devices = describe_devices()
    if report.device == "cuda" and not torch.cuda.is_available():
        report.problems.append("--device cuda, but torch sees no GPU: install a CUDA build of torch and the driver")
        return report
    diagnose_scan(report)
    return report


def format_report(report: Report) -> str:
    """The report for people: aligned sections, the verdict last."""
    lines = _section("Packages", {name: version or "not installed" for name, version in report.versions.items()})
    lines += _section("Devices", report.devices)
    backends = {name: _backend_line(name, reason, report.backend) for name, reason in report.backends.items()}
    lines += _section(f"Selective scan backends on {report.device}, preferred first", backends)
    checks = {check.dtype: _check_line(check) for check in report.checks}
    lines += _section(f"Largest relative error of {report.backend} against naive in float64", checks)
    lines += [f"WARNING  {warning}" for warning in report.warnings]
    lines += [f"PROBLEM  {problem}" for problem in report.problems]
    lines.append("Healthy." if report.healthy else "Not healthy.")
    return "\n".join(lines)


def _section(title: str, rows: dict[str, str]) -> list[str]:
    return [title, *(f"  {name:<16}{text}" for name, text in rows.items()), ""] if rows else []


def _backend_line(name: str, reason: str | None, chosen: str | None) -> str:
    if name == chosen:
        return "taken by backend='auto'"
    return "can run" if reason is None else f"cannot run: {reason}"


def _check_line(check: ScanCheck) -> str:
    verdict = "ok" if check.passed else "WRONG"
    return (
        f"output {check.output_error:.1e}, gradients {check.gradient_error:.1e}, "
        f"allowed {check.tolerance:.0e}: {verdict}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.doctor", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    report = diagnose(options.device)
    print(json.dumps(asdict(report) | {"healthy": report.healthy}, indent=2) if options.json else format_report(report))
    return 0 if report.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
