"""Say whether this machine is fit to run the bundle, and which selective-scan backends really run on it.

``python -m scripts.doctor`` lists versions and devices, runs every scan backend that can run on the device forward
and backward against the specification (naive) in float64, and says why the others cannot run. With
``--require NAME`` a backend has to pass, such as mamba_ssm where the reference's CUDA scan is wanted.
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

from .common import BUNDLE_ROOT
from .common.errors import UserError
from .common.readable_json import read_json

if TYPE_CHECKING:
    from .ops.selective_scan.check import ScanCheck

# torch and what imports it are imported inside functions: a doctor must be able to say that torch is missing.

__all__ = ["Report", "diagnose", "format_report", "main"]

PYTHONS = ((3, 10), (3, 13))  # first and last supported
MINIMUM_TORCH = (2, 4)
METADATA = BUNDLE_ROOT / "configs/metadata.json"
CORE = ("torch", "monai", "numpy")  # which have keys of their own in metadata.json
# Packages that a faster backend needs -> the device it is for.
OPTIONAL = {"triton": "cuda", "numba": "cpu"}
HEALTHY, UNHEALTHY, REQUIRED_DOES_NOT_RUN = 0, 1, 3
EXIT_STATUS = """exit status:
  0  healthy (warnings and notes may remain)
  1  something is broken; each line PROBLEM says what and what to do
  2  wrong usage of this command
  3  the backend that --require names does not run on the device, or is wrong"""


@dataclass
class Report:
    """All that the doctor found; ``problems`` make a machine unhealthy, ``warnings`` and ``notes`` do not."""

    versions: dict[str, str | None] = field(default_factory=dict)
    extensions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    backend: str | None = None
    required: str | None = None
    backends: dict[str, str | None] = field(default_factory=dict)
    checks: list[ScanCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.problems

    def runs(self, backend: str) -> bool:
        """Whether a backend ran and was right in every dtype."""
        own = [check.passed for check in self.checks if check.backend == backend]
        return bool(own) and all(own)

    @property
    def exit_status(self) -> int:
        if self.required and not self.runs(self.required):
            return REQUIRED_DOES_NOT_RUN
        return HEALTHY if self.healthy else UNHEALTHY


def required_packages() -> list[str]:
    """The packages that the bundle cannot do without: those that metadata.json names, but the optional ones.

    Raises:
        UserError: that file cannot be read.
    """
    named = read_json(METADATA, advice="get the bundle again").get("required_packages_version", {})
    return [*CORE, *(name for name in named if name not in OPTIONAL)]


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


def diagnose_extensions(report: Report) -> None:
    """Say of the reference's compiled packages whether they import.

    A broken one becomes a warning, mamba-ssm a problem if its backend is required.
    """
    from .ops.selective_scan.cuda_extensions import CAUSAL_CONV1D, MAMBA_SSM, import_failure, is_installed

    for extension in (MAMBA_SSM, CAUSAL_CONV1D):
        failure, installed = import_failure(extension), is_installed(extension)
        required = extension is MAMBA_SSM and report.required == "mamba_ssm"
        version = installed_version(extension.package) or "of unknown version"
        state = f"{version}, its CUDA extension imports" if failure is None else f"{version}, BROKEN"
        report.extensions[extension.package] = state if installed else "not installed (optional)"
        if failure is not None and (installed or required):
            lines = report.problems if required else report.warnings
            lines.append(f"{failure.reason}; cure: {failure.cure}")


def diagnose_scan(report: Report) -> None:
    """Check every backend that can run; failures of the one that is taken or required become problems."""
    from .ops.selective_scan import backend_report, choose_backend
    from .ops.selective_scan.check import check_backend

    report.backends = backend_report(report.device)
    report.backend = choose_backend(report.device)
    for name in (name for name, reason in report.backends.items() if reason is None):
        checks = check_backend(name, report.device)
        report.checks += checks
        lines = report.problems if name in (report.backend, report.required) else report.warnings
        lines += [_complaint(check, report.device) for check in checks if not check.passed]
    reason = report.backends.get(report.required or "")
    if reason is not None:
        report.problems.append(f"the required backend {report.required} cannot run on {report.device}: {reason}")
    report.notes += _faster_backends(report)


def _complaint(check: ScanCheck, device: str) -> str:
    where = f"in {check.dtype} on {device}"
    if check.failure is not None:
        return f"backend {check.backend} fails {where}: {check.failure}; another can be set as the network's backend"
    return (
        f"backend {check.backend} disagrees with naive {where}: do not trust its results; set another as the "
        "network's backend and report this output"
    )


def _faster_backends(report: Report) -> list[str]:
    """What to install for a backend that `auto` would rather take."""
    return [
        f"{package} is not installed: backend='auto' takes {report.backend} instead; pip install {package}"
        for package, device in OPTIONAL.items()
        if device == report.device and package in report.backends and report.versions[package] is None
    ]


def diagnose(device: str | None = None, required: str | None = None) -> Report:
    """Look at everything.

    Args:
        device: "cpu" or "cuda"; None takes CUDA where there is a GPU.
        required: a scan backend that has to run.
    """
    report = Report(versions={"python": platform.python_version()}, required=required)
    required_here = _required_packages(report)
    report.versions |= {package: installed_version(package) for package in (*required_here, *OPTIONAL)}
    report.warnings = version_warnings(sys.version_info[:2], report.versions["torch"])
    missing = [package for package in required_here if report.versions[package] is None]
    if missing:
        report.problems.append(f"not installed: pip install {' '.join(missing)}")
    if "torch" in missing or not _torch_imports(report):
        return report

    import torch

    report.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    report.devices = describe_devices()
    diagnose_extensions(report)
    if report.device == "cuda" and not torch.cuda.is_available():
        report.problems.append("--device cuda, but torch sees no GPU: install a CUDA build of torch and the driver")
        return report
    diagnose_scan(report)
    return report


def _required_packages(report: Report) -> list[str]:
    try:
        return required_packages()
    except UserError as error:
        report.problems.append(str(error))
        return list(CORE)


def _torch_imports(report: Report) -> bool:
    try:
        import torch  # noqa: F401
    except Exception as error:  # such as a CUDA library that is missing
        report.problems.append(f"torch cannot be imported ({type(error).__name__}: {error}): install it again")
        return False
    return True


def format_report(report: Report) -> str:
    """The report for people: aligned sections, the verdict last."""
    lines = _section("Packages", {name: _version_line(name, version) for name, version in report.versions.items()})
    lines += _section("The reference's CUDA packages", report.extensions)
    lines += _section("Devices", report.devices)
    backends = {name: _backend_line(name, reason, report.backend) for name, reason in report.backends.items()}
    lines += _section(f"Selective scan backends on {report.device}, preferred first", backends)
    checks = {f"{check.backend}, {check.dtype}": _check_line(check) for check in report.checks}
    lines += _section("Largest relative error against naive in float64", checks)
    lines += [f"NOTE     {note}" for note in report.notes]
    lines += [f"WARNING  {warning}" for warning in report.warnings]
    lines += [f"PROBLEM  {problem}" for problem in report.problems]
    if report.required:
        lines.append(f"The backend {report.required} {'runs' if report.runs(report.required) else 'does not run'}.")
    lines.append("Healthy." if report.healthy else "Not healthy.")
    return "\n".join(lines)


def _section(title: str, rows: dict[str, str]) -> list[str]:
    width = max([16, *(len(name) + 2 for name in rows)])
    return [title, *(f"  {name:<{width}}{text}" for name, text in rows.items()), ""] if rows else []


def _version_line(name: str, version: str | None) -> str:
    return version or ("not installed (optional)" if name in OPTIONAL else "not installed")


def _backend_line(name: str, reason: str | None, chosen: str | None) -> str:
    if name == chosen:
        return "taken by backend='auto'"
    return "can run" if reason is None else f"cannot run: {reason}"


def _check_line(check: ScanCheck) -> str:
    if check.failure is not None:
        return f"FAILS: {check.failure}"
    verdict = "ok" if check.passed else "WRONG"
    return (
        f"output {check.output_error:.1e}, gradients {check.gradient_error:.1e}, "
        f"allowed {check.tolerance:.0e}: {verdict}"
    )


def _known_backends() -> list[str]:
    """Names for --require; none if torch does not import, which is then the finding."""
    try:
        from .ops.selective_scan import backend_report
    except Exception:
        return []
    return list(backend_report("cpu"))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.doctor",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU")
    parser.add_argument("--require", metavar="BACKEND", help="a scan backend that has to run, such as mamba_ssm")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    known = _known_backends()
    if options.require and known and options.require not in known:
        parser.error(f"--require {options.require}: no such backend; choose from {', '.join(known)}")
    report = diagnose(options.device, options.require)
    summary = {"healthy": report.healthy, "exit_status": report.exit_status}
    print(json.dumps(asdict(report) | summary, indent=2) if options.json else format_report(report))
    return report.exit_status


if __name__ == "__main__":
    sys.exit(main())
