"""Time, peak memory and error of the selective scan's backends, side by side, as a Markdown table.

    python benchmarks/selective_scan.py    # the CPU target shape, forward only
    python benchmarks/selective_scan.py --backward --shapes 1x8192x128x16 9x512x512x16
    python benchmarks/selective_scan.py --device cuda --backward --shapes 2x262144x64x16

Needs the packages torch and, for the baseline, mambapy (PyPI): its parallel scan (mambapy.pscan) with the
discretisation and the contraction with C that its Mamba block puts around it. Without it the row is left out.

Every backend computes the whole function: softplus(delta + bias), the scan, the skip connection and the gate.
Backends take turns within a round, so that noise hits all alike; times are medians over the rounds. Memory is
what a fresh process needs beyond its inputs (CUDA: the allocator's peak); measuring it needs Linux on a CPU.
The error is max |y - y64| / max |y64| with y64 from the naive backend in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.ops.selective_scan import backend_report, selective_scan

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

TARGET = "1x65536x64x16"
# Beyond these lengths naive takes minutes: it runs there only if --backends names it.
NAIVE_LONGEST = {False: 2**17, True: 2**13}


class Shape(NamedTuple):
    batch: int
    length: int
    channels: int
    state: int

    def __str__(self) -> str:
        return "x".join(str(n) for n in self)


def parse_shape(text: str) -> Shape:
    return Shape(*(int(n) for n in text.split("x")))


def make_inputs(shape: Shape, device: str) -> dict[str, Tensor]:
    """Inputs as a freshly initialised Mamba block feeds them: step sizes 1e-3 .. 1e-1, A = -1 .. -state."""
    batch, length, channels, state = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    step = torch.exp(torch.rand(channels, generator=generator) * 4.6 - 6.9)
    inputs = {
        "u": normal(batch, length, channels),
        "delta": 0.5 * normal(batch, length, channels),
        "A": -torch.arange(1.0, state + 1).repeat(channels, 1),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": torch.ones(channels),
        "z": normal(batch, length, channels),
        "delta_bias": torch.log(torch.expm1(step)),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    states = pscan(decay, (delta * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((states @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def make_call(backend: str) -> Callable[..., Tensor]:
    if backend == "mambapy":
        return mambapy_scan
    return lambda **inputs: selective_scan(**inputs, delta_softplus=True, backend=backend)


def run(call: Callable[..., Tensor], inputs: dict[str, Tensor], backward: bool) -> Tensor:
    if not backward:
        with torch.no_grad():
            return call(**inputs)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y = call(**leaves)
    y.backward(inputs["z"])
    return y.detach()


def seconds(call: Callable[..., Tensor], inputs: dict[str, Tensor], backward: bool) -> float:
    if not inputs["u"].is_cuda:
        start = time.perf_counter()
        run(call, inputs, backward)
        return time.perf_counter() - start
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    run(call, inputs, backward)
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def peak_memory(backend: str, shape: Shape, device: str, backward: bool) -> int:
    """Bytes beyond the inputs at the peak of one run; for the CPU to be called in a fresh process."""
    call = make_call(backend)
    inputs = make_inputs(shape, device)
    run(call, make_inputs(Shape(1, 64, shape.channels, shape.state), device), backward)
    if inputs["u"].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(call, inputs, backward)
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes("VmRSS")
    run(call, inputs, backward)
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """This process's resident memory, now (VmRSS) or at its peak (VmHWM); Linux.

    Not getrusage: its ru_maxrss starts from what the parent process held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def peak_memory_in_fresh_process(backend: str, shape: Shape, args: argparse.Namespace) -> int:
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        backend,
        "--shapes",
        str(shape),
        "--device",
        args.device,
    ]
    command += ["--threads", str(args.threads)] + (["--backward"] if args.backward else [])
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def backends_for(shape: Shape, args: argparse.Namespace) -> list[str]:
    if args.backends:
        return args.backends
    names = [name for name, reason in backend_report(args.device).items() if reason is None]
    if pscan is not None:
        names.append("mambapy")
    return [name for name in names if name != "naive" or shape.length <= NAIVE_LONGEST[args.backward]]


def reference(inputs: dict[str, Tensor]) -> Tensor | None:
    if inputs["u"].shape[1] > NAIVE_LONGEST[False]:
        return None
    return run(make_call("naive"), {name: tensor.double() for name, tensor in inputs.items()}, backward=False)


def measure(shape: Shape, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a backend."""
    backends = backends_for(shape, args)
    inputs = make_inputs(shape, args.device)
    y64 = reference(inputs)
    errors = {}
    for name in backends:  # the first run is the warm-up
        y = run(make_call(name), inputs, backward=False)
        errors[name] = None if y64 is None else ((y - y64).abs().max() / y64.abs().max()).item()
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(args.rounds):
        for name in backends:
            for backward in (False, True)[: 1 + args.backward]:
                times.setdefault((name, backward), []).append(seconds(make_call(name), inputs, backward))
    median = {key: statistics.median(values) for key, values in times.items()}
    del inputs, y64, y
    return [
        {
            "shape": str(shape),
            "backend": name,
            "forward_ms": median[name, False] * 1e3,
            "forward_backward_ms": median[name, True] * 1e3 if args.backward else None,
            "peak_bytes": peak_memory_in_fresh_process(name, shape, args),
            "error": errors[name],
            "ratio": median[name, args.backward]
            / min((median[other, args.backward] for other in backends if other != name), default=float("nan")),
        }
        for name in backends
    ]


def table(records: list[dict[str, Any]]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        "| batch x length x channels x state | backend | forward ms | forward+backward ms | peak MiB "
        "| max relative error | time / fastest other |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        cells = (
            r["shape"],
            r["backend"],
            cell(r["forward_ms"], ".1f"),
            cell(r["forward_backward_ms"], ".1f"),
            cell(r["peak_bytes"] / 2**20, ".0f"),
            cell(r["error"], ".1e"),
            cell(r["ratio"], ".2f"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_ratios(records: list[dict[str, Any]]) -> None:
    """The chunked backend's forward against each other one."""
    for own in (r for r in records if r["backend"] == "chunked"):
        for other in records:
            if other["shape"] == own["shape"] and other is not own:
                ratio = other["forward_ms"] / own["forward_ms"]
                print(f"{own['shape']}: chunked forward is {ratio:.1f} times as fast as {other['backend']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[parse_shape(TARGET)], metavar="BxLxDxN")
    parser.add_argument("--backends", nargs="+", help="default: all that can run here, and mambapy")
    parser.add_argument("--backward", action="store_true", help="time forward and backward too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there too")
    parser.add_argument("--memory-of", metavar="BACKEND", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_memory(args.memory_of, args.shapes[0], args.device, args.backward))
        return
    if pscan is None:
        print("mambapy is not installed (pip install mambapy): its row is left out\n", file=sys.stderr)
    records = [record for shape in args.shapes for record in measure(shape, args)]
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, medians of {args.rounds} rounds\n")
    print(table(records))
    print()
    print_ratios(records)
    if args.json:
        args.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
