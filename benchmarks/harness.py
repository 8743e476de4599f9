"""What the benchmarks share: interleaved timing, results that survive a crash, and Markdown tables.

A benchmark measures candidates against each other. Within a round each candidate has its turn, so that noise
and clock changes hit all alike; a figure is the median over the rounds. A candidate that fails keeps its row,
with the reason in it, and the others go on. Everything is in the JSON file as soon as it is known.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

__all__ = [
    "LABELS",
    "Budget",
    "DeviceLost",
    "Results",
    "Row",
    "environment_line",
    "free_memory",
    "guarded",
    "in_one_cell",
    "installed_versions",
    "interleave",
    "json_or_text",
    "load_results",
    "markdown_table",
    "number",
    "peak_in_fresh_process",
    "peak_of_process",
    "peak_on_gpu",
    "peak_resident",
    "processor_seconds",
    "ratio",
    "read_json",
    "record",
    "report",
    "run_steps",
    "synchronize",
]

Row = dict[str, Any]

# Names as tables and pictures print them: the package and the backend that calls it are hard to tell apart.
LABELS = {"mamba_ssm": "mamba_ssm backend"}
PACKAGES = ("triton", "numba", "monai", "mamba-ssm", "causal-conv1d", "mambapy", "dynamic-network-architectures")
# A GPU call is repeated between two events for about so long: a launch then costs nothing unless it is the limit.
WINDOW_MS = 20.0
MOST_REPEATS = 50


class DeviceLost(RuntimeError):
    """The GPU refuses all further work of this process, as after an illegal memory access."""


class Budget:
    """Wall-clock time that the whole benchmark may take."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()

    def spent(self) -> bool:
        return self.left() <= 0


class Results:
    """The rows of one run and what they were measured on, in a JSON file rewritten whole at each save.

    Args:
        path: the file, or None to keep the rows in memory only.
        benchmark: its name.
        device: where it runs.
        settings: what else the figures depend on.
        resume: take over the rows that are in the file already.
    """

    def __init__(
        self, path: Path | None, benchmark: str, device: torch.device, settings: dict[str, Any], resume: bool = False
    ) -> None:
        self.path = path
        earlier = json.loads(path.read_text(encoding="utf-8")) if path and resume and path.is_file() else {}
        self.content: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": environment(device),
            "settings": settings,
            "done": earlier.get("done", []),
            "rows": earlier.get("rows", []),
        }

    @property
    def done(self) -> list[str]:
        """Names of the steps that are finished."""
        return self.content["done"]

    def row(self, **key: Any) -> Row:
        """The row with this key; a new one if there is none."""
        for row in self.content["rows"]:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        self.content["rows"].append(key)
        return key

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def read_json(path: Path) -> Any:
    """Raises SystemExit: the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read: {error}") from error


def json_or_text(text: str) -> Any:
    """A value that was typed: what it is as JSON, or itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def load_results(path: Path, benchmark: str) -> dict[str, Any]:
    """Read what `Results` wrote.

    Raises:
        SystemExit: the file is missing, is no JSON or belongs to another benchmark.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("benchmark") != benchmark:
        raise SystemExit(f"{path}: holds no results of the benchmark {benchmark}")
    return content


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions that the figures depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "packages": installed_versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d"),
    }


def environment_line(environment: dict[str, Any]) -> str:
    """The environment in one line of Markdown."""
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    where = f"CUDA {environment['cuda']}" if environment["cuda"] else threads
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    versions = f"Python {environment['python']}, torch {environment['torch']}"
    return f"{environment['device']}, {where}; {versions}{', ' if packages else ''}{packages}; {environment['date']}"


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


@contextmanager
def guarded(row: Row, results: Results, device: torch.device) -> Iterator[None]:
    """Write a failure of the block into `row["failed"]` and go on; save the results either way.

    Raises:
        DeviceLost: the failure took the GPU with it.
    """
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no message"]
        row["failed"] = f"{type(error).__name__}: {lines[0][:200]}"
        print(f"{' '.join(str(v) for v in row.values() if isinstance(v, str))}", file=sys.stderr, flush=True)
    finally:
        results.save()
    if "failed" in row:
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more.

    Raises:
        DeviceLost: the GPU does not answer any more.
    """
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLost(str(error)) from error


def run_steps(
    steps: Sequence[tuple[str, Callable[[], None]]], results: Results, device: torch.device, budget: Budget
) -> None:
    """Run named steps; one that fails does not touch the others, even if it takes the GPU with it.

    In that case the program starts anew in the rest of its time, and takes its rows over from the JSON file: what
    failed is not tried again, what was finished is not repeated.

    Raises:
        DeviceLost: the GPU was lost, and there is no JSON file.
    """
    for name, step in steps:
        if name in results.done:
            continue
        print(f"{name} ({budget.left():.0f} s left)", file=sys.stderr, flush=True)
        try:
            with guarded({"what": name}, results, device):
                step()
                results.done.append(name)
        except DeviceLost:
            if results.path is None:
                raise
            print("the GPU is lost to this process: starting again without what failed", file=sys.stderr, flush=True)
            again = [*sys.argv, "--resume", "--budget-s", str(int(budget.left()))]
            os.execv(sys.executable, [sys.executable, *again])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Time of one of `repeats` calls in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) * 1e3 / repeats
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize(device)
    events[0].record()
    for _ in range(repeats):
        call()
    events[1].record()
    torch.cuda.synchronize(device)
    return events[0].elapsed_time(events[1]) / repeats


def record(call: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """The call as one CUDA graph: a replay takes the GPU's time, however slow the host is.

    The graph does not keep alive what the call reads.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a first call allocates or compiles cannot be recorded
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    return graph


def repeats_for(call: Callable[[], object], device: torch.device) -> int:
    """How many calls fill the window between two events; the call must be warm."""
    if device.type != "cuda":
        return 1
    return max(1, min(MOST_REPEATS, int(WINDOW_MS / max(milliseconds(call, device), 1e-3))))


def peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    """The allocator's peak beyond what was allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_resident(call: Callable[[], object]) -> int:
    """What this process's resident memory grows by at the peak of a call; to be asked once in a process; Linux."""
    before = _resident_bytes("VmRSS")
    call()
    return max(0, _resident_bytes("VmHWM") - before)


def peak_of_process() -> int:
    """Most resident memory that this process ever had, in bytes; Linux."""
    return _resident_bytes("VmHWM")


def peak_in_fresh_process(script: Path, options: Sequence[str]) -> int:
    """What a benchmark prints when it is run with these options: a peak that earlier measurements cannot blur.

    Raises:
        RuntimeError: it failed; the message is its error's.
    """
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        raise RuntimeError(f"measuring memory failed: {reason}")
    return int(done.stdout)


def _resident_bytes(field: str) -> int:
    """This process's resident memory, now (VmRSS) or at its peak (VmHWM); Linux.

    Not getrusage: its ru_maxrss starts from what the parent process held.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


Call = TypeVar("Call", bound=Callable[[], object])


def interleave(
    turns: Sequence[tuple[Row, str, Call]],
    rounds: int,
    device: torch.device,
    budget: Budget,
    results: Results,
    before_turn: Callable[[Call], None] = lambda call: None,
) -> None:
    """Time every (row, mode, call) once a round; row["times"][mode] is the list, row[mode + "_ms"] its median.

    Stops early, with what it has, once the budget is spent. A call that fails leaves the rounds.
    """
    repeats: dict[int, int] = {}
    for _ in range(rounds):
        for i, (row, mode, call) in enumerate(turns):
            if budget.spent():
                return
            if "failed" in row:
                continue
            with guarded(row, results, device):
                before_turn(call)
                repeats[i] = repeats.get(i) or repeats_for(call, device)
                times = row.setdefault("times", {}).setdefault(mode, [])
                times.append(round(milliseconds(call, device, repeats[i]), 5))
                row[f"{mode}_ms"] = statistics.median(times)


def processor_seconds(call: Callable[[int], object], seconds: float, least: int) -> float:
    """Of one of the calls 1, 2, …, in processor time on one thread: the mean of `least` or of as many as fit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    call(0)
    start, begin, count = time.process_time(), time.perf_counter(), 0
    while count < least or time.perf_counter() - begin < seconds:
        count += 1
        call(count)
    taken = time.process_time() - start
    torch.set_num_threads(threads)
    return taken / count


def report(content: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> str:
    """What a record was measured on, and its table."""
    return f"{environment_line(content['environment'])}\n\n{table(content)}"


def ratio(baseline: Row, row: Row, mode: str) -> float | None:
    """How many times as fast as the baseline a row is; None where one of them has no time."""
    key = f"{mode}_ms"
    return baseline[key] / row[key] if key in row and key in baseline else None


def in_one_cell(values: Sequence[float | None], form: str) -> str:
    """Such as of two modes: "1.00 / 2.00"."""
    return " / ".join("-" if value is None else format(value, form) for value in values)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` columns are text, the others numbers, set to the right."""
    rule = ["---" if i < text_columns else "---:" for i in range(len(headers))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headers, rule, *rows))


def number(value: float | None, digits: int) -> str:
    """With so many significant digits, never in scientific notation."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10**digits else f"{value:#.{digits}g}".rstrip(".")
