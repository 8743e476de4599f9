"""Time, bandwidth, peak memory and error of the selective scan's backends, side by side, as Markdown tables.

    python benchmarks/selective_scan.py                                    # small shapes on two CPU threads
    python benchmarks/selective_scan.py --device cuda --dtype float32 bfloat16 --json FILE.json --plot FILE.png
    python benchmarks/selective_scan.py --device cuda --cuda-graph --json FILE.json   # without the host
    python benchmarks/selective_scan.py --from-json FILE.json [FILE.json ...] [--plot FILE.png]

Candidates are the backends that can run on the device and, where installed, two baselines: mamba-ssm's own
selective_scan_fn on its own channels-first layout (GPU), and mambapy's parallel scan (CPU) with the
discretisation and the contraction with C that its Mamba block puts around it. Each computes the whole function:
softplus(delta + bias), the scan, the skip connection and the gate; backward gives the gradient of every input.

A shape is batch x length x channels x state. Times are medians over rounds in which the candidates take turns;
GPU calls run back to back; --cuda-graph replays each as a CUDA graph, since else a short scan takes the time that the
host needs to start its kernels. GB/s counts each input read once and each output written once. Memory is what a run
needs beyond its inputs: the allocator's peak on a GPU; on a CPU that of a fresh process (Linux). Errors are
against the chunked backend in float64 on the same inputs, rounded to the dtype before: the largest and the
root mean square, relative to the largest and the rms true value; of the gradients the worst one counts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import (
    Budget,
    Results,
    Row,
    free_memory,
    guarded,
    interleave,
    load_results,
    peak_in_fresh_process,
    peak_on_gpu,
    peak_resident,
    record,
    run_steps,
    synchronize,
)
from options import comparison_parser
from scan_candidates import (
    MAMBAPY,
    MODES,
    Candidate,
    Shape,
    candidate_report,
    make_inputs,
    minimal_bytes,
    parse_shape,
    relative_errors,
    true_results,
)
from scan_report import report
from torch import Tensor

CPU_SHAPES = ("1x4096x512x16", "1x65536x64x16", "1x262144x64x16")
GPU_SHAPES = ("2x262144x64x16", "2x1310720x64x16", "2x65536x128x16", "2x4096x512x16", "1x262144x64x16")
# Beyond these naive takes minutes and is left out, unless --backends names it: elements of the states on a CPU;
# on a GPU, where each step of the sequence is a handful of launches, its length.
NAIVE_LARGEST_CPU = {"forward": 2**26, "forward_backward": 2**23}
NAIVE_LONGEST_GPU = 2**13
# mambapy keeps several tensors of (batch, length, channels, state): these may have so many elements.
MAMBAPY_LARGEST = 2**27
# The plot: (1, length, 64, 16), lengths 2**10 up to these; a candidate stops once one call takes longer than this.
SWEEP_LAST = {"cpu": 17, "cuda": 21}
SWEEP_LIMIT_MS = {"cpu": 2000.0, "cuda": 200.0}


def modes_of(name: str, shape: Shape, args: argparse.Namespace) -> list[str]:
    """What to measure of a candidate: naive and mambapy leave out what takes minutes or gigabytes."""
    states = math.prod(shape)
    if name == MAMBAPY and states > MAMBAPY_LARGEST:
        return []
    if name != "naive" or args.backends:
        return list(args.modes)
    if args.device.type == "cpu":
        return [mode for mode in args.modes if states <= NAIVE_LARGEST_CPU[mode]]
    return list(args.modes) if shape.length <= NAIVE_LONGEST_GPU else []


def candidate_names(args: argparse.Namespace, dtype: torch.dtype) -> list[str]:
    """What to run, ours first; the reason for what is left out goes to stderr."""
    names = []
    for name, reason in candidate_report(args.device, dtype).items():
        if args.backends and name not in args.backends:
            continue
        if reason is None or args.backends:  # what was asked for gets a row, if only to say why not
            names.append(name)
        else:
            print(f"{name} is left out: {reason}", file=sys.stderr)
    return names + sorted(set(args.backends or ()) - set(names))


class Replay(NamedTuple):
    """A recorded call; the graph reads the candidate's tensors and does not keep them alive itself."""

    candidate: Candidate
    graph: torch.cuda.CUDAGraph

    def __call__(self) -> None:
        self.graph.replay()


class Run:
    """One run of the benchmark: what it was asked, the time it has, where its rows go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device: torch.device = args.device
        self.budget = Budget(args.budget_s)
        settings = {"rounds": args.rounds, "cuda_graph": args.cuda_graph}
        self.results = Results(args.json, "selective_scan", args.device, settings, args.resume)

    def table(self, shape: Shape, dtype: torch.dtype) -> None:
        """All figures of one shape."""
        inputs = make_inputs(shape, self.device, dtype)
        truth = self._truth(inputs)
        turns = []
        for name in candidate_names(self.args, dtype):
            modes = modes_of(name, shape, self.args)
            row = self._row("table", name, shape, dtype)
            for mode in modes:
                row.setdefault("bytes", {})[mode] = minimal_bytes(inputs, mode)
            turns += [(row, mode, call) for mode, call in self._prepared(row, name, inputs, modes, truth).items()]
        del truth
        free_memory(self.device)
        interleave(turns, self.args.rounds, self.device, self.budget, self.results)
        if self.device.type == "cpu" and self.args.memory:
            for row, mode, _ in turns:
                if "failed" in row or self.budget.spent():
                    continue
                with guarded(row, self.results, self.device):
                    row.setdefault("peak_bytes", {})[mode] = peak_in_process_of_its_own(row, shape, mode)

    def sweep(self, dtype: torch.dtype) -> None:
        """Times over the length of the sequence, for the plot."""
        last = self.args.sweep_last or SWEEP_LAST[self.device.type]
        limit = SWEEP_LIMIT_MS[self.device.type]
        active = {name: list(self.args.modes) for name in candidate_names(self.args, dtype)}
        for length in (2**i for i in range(10, last + 1)):
            shape = Shape(1, length, 64, 16)
            inputs = make_inputs(shape, self.device, dtype)
            turns = []
            for name, modes in active.items():
                if name == MAMBAPY and not modes_of(name, shape, self.args):
                    modes.clear()
                row = self._row("sweep", name, shape, dtype)
                calls = self._prepared(row, name, inputs, modes)
                if not calls:
                    modes.clear()
                turns += [(row, mode, call) for mode, call in calls.items()]
            interleave(turns, self.args.rounds, self.device, self.budget, self.results)
            for row, mode, _ in turns:
                if "failed" in row or row.get(f"{mode}_ms", limit) >= limit:
                    active[row["backend"]].remove(mode)

    def _row(self, kind: str, backend: str, shape: Shape, dtype: torch.dtype) -> Row:
        return self.results.row(kind=kind, backend=backend, shape=str(shape), dtype=str(dtype).removeprefix("torch."))

    def _truth(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The true results, as far as they fit the memory: empty, so that errors are missing, if they do not."""
        note: Row = {"what": "float64 truth"}
        with guarded(note, self.results, self.device):
            return true_results(inputs, backward="forward_backward" in self.args.modes)
        return {}

    def _prepared(
        self,
        row: Row,
        name: str,
        inputs: dict[str, Tensor],
        modes: Sequence[str],
        truth: dict[str, Tensor] | None = None,
    ) -> dict[str, Callable[[], object]]:
        """A warm call for each mode, its errors and GPU memory measured; none if one fails or the time is spent."""
        if "failed" in row or not modes:
            return {}
        if self.budget.spent():
            row["failed"] = "not measured: the time budget was spent"
            return {}
        row.pop("times", None)  # of a process that was lost
        with guarded(row, self.results, self.device):
            candidate = Candidate(name, inputs)
            for mode in modes:
                found = candidate.results(mode)
                synchronize(self.device)
                if truth:
                    row.setdefault("errors", {}).update({k: relative_errors(t, truth[k]) for k, t in found.items()})
                del found
                if self.device.type == "cuda" and truth is not None:
                    row.setdefault("peak_bytes", {})[mode] = peak_on_gpu(getattr(candidate, mode), self.device)
            return {mode: self._call(candidate, mode) for mode in modes}
        return {}

    def _call(self, candidate: Candidate, mode: str) -> Callable[[], object]:
        call = getattr(candidate, mode)
        return Replay(candidate, record(call, self.device)) if self.args.cuda_graph else call


def peak_in_process_of_its_own(row: Row, shape: Shape, mode: str) -> int:
    """Bytes beyond the inputs at the peak of one run on the CPU."""
    options = ["--memory-of", row["backend"], mode, "--shapes", str(shape), "--dtype", row["dtype"]]
    return peak_in_fresh_process(Path(__file__), [*options, "--threads", str(torch.get_num_threads())])


def peak_of_this_process(backend: str, mode: str, shape: Shape, dtype: torch.dtype) -> int:
    cpu = torch.device("cpu")
    # A small run first: what libraries take once, a just-in-time compiler above all, is not the scan's memory.
    getattr(Candidate(backend, make_inputs(shape._replace(batch=1, length=64), cpu, dtype)), mode)()
    candidate = Candidate(backend, make_inputs(shape, cpu, dtype))
    return peak_resident(getattr(candidate, mode))


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = comparison_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="BxLxDxN", help="default: by the device")
    parser.add_argument("--backends", nargs="+", help="default: all that can run here")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--forward-only", action="store_true", help="do not time the backward pass")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also time over the length, as a picture")
    parser.add_argument("--sweep-last", type=int, metavar="I", help="the plot ends at length 2**I")
    parser.add_argument("--memory-of", nargs=2, metavar=("BACKEND", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.cuda_graph and args.device.type != "cuda":
        parser.error("--cuda-graph needs --device cuda")
    args.modes = MODES[: 1 if args.forward_only else 2]
    if args.shapes is None:
        args.shapes = [parse_shape(text) for text in (GPU_SHAPES if args.device.type == "cuda" else CPU_SHAPES)]
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; what happens to one shape does not touch the others."""
    run = Run(args)
    steps: list[tuple[str, Callable[[], None]]] = []
    for name in args.dtype:
        dtype = getattr(torch, name)
        steps += [(f"{shape} {name}", lambda s=shape, d=dtype: run.table(s, d)) for shape in args.shapes]
    if args.plot:
        steps.append(("sweep", lambda: run.sweep(getattr(torch, args.dtype[0]))))
    run_steps(steps, run.results, args.device, run.budget)
    return run.results.content


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_of_this_process(*args.memory_of, args.shapes[0], getattr(torch, args.dtype[0])))
        return
    contents = [load_results(path, "selective_scan") for path in args.from_json or ()] or [measure(args)]
    print("\n\n".join(report(content) for content in contents))
    if args.plot:
        from plots import plot_sweeps

        plot_sweeps(contents, args.plot)


if __name__ == "__main__":
    main()
