"""Train step, forward pass and peak memory of LightM-UNet and of networks it is compared with, as Markdown tables.

    python benchmarks/networks.py                                    # forward passes on two CPU threads
    python benchmarks/networks.py --device cuda --json FILE.json
    python benchmarks/networks.py --device cuda --amp --json FILE.json
    python benchmarks/networks.py --device cuda --profile lightm_unet:triton
    python benchmarks/networks.py --from-json FILE.json [FILE.json ...]

Networks: default, LightM-UNet as planning sets it up; lightm_unet, the paper's, on each scan backend; reference, the
authors' structure on mamba-ssm's blocks; nnU-Net's PlainConvUNet (env/requirements-benchmarks.txt); MONAI's
SegResNet and DynUNet. --networks picks them: NAME, NAME:BACKEND or NAME:KEY=VALUE,... such as
lightm_unet:triton,use_checkpoint=true.

A train step is the forward pass, cross-entropy, the backward pass and AdamW; the forward pass is in eval mode
without gradients. Times are medians over rounds in which the networks take turns. Peak memory is that of one
network alone: what its weights, optimiser, input and activations take of the allocator on a GPU; on a CPU (Linux)
what a fresh process grows by. float32 with TF32 in convolutions, as torch has it; --matmul-precision high allows
TF32 in matrix products too. --cuda-graph replays each pass as one CUDA graph: without it a slow host, not the GPU,
may be what is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import (
    Budget,
    Results,
    Row,
    environment_line,
    free_memory,
    guarded,
    in_one_cell,
    interleave,
    load_results,
    markdown_table,
    number,
    peak_in_fresh_process,
    peak_on_gpu,
    peak_resident,
    ratio,
    run_steps,
)
from network_candidates import Shape, Trial, Turn, default_specs, parse_shape
from network_profile import profile
from options import comparison_parser

from scripts.ops.selective_scan import backend_report

GPU_SHAPES = ("2x3x512x512", "2x1x80x128x128", "9x1x40x56x40")
CPU_SHAPES = ("1x3x512x512", "1x1x64x64x64")
MODES = ("train", "forward")
BASELINES = ("reference", "plain_conv_unet")
WARM_UPS = 2
SCANNING = ("default", "lightm_unet", "reference")


class Run:
    """One run of the benchmark: what it was asked, the time it has, where its rows go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device: torch.device = args.device
        self.budget = Budget(args.budget_s)
        settings = {name: getattr(args, name) for name in ("rounds", "amp", "matmul_precision", "cuda_graph")}
        self.results = Results(args.json, "networks", args.device, settings, args.resume)

    def table(self, shape: Shape) -> None:
        """All figures of one shape."""
        rows = {spec: self.results.row(shape=str(shape), network=spec) for spec in specs(self.args, shape)}
        if self.device.type == "cuda":  # first, while nothing else is on the device
            for spec, row in rows.items():
                self._unless_failed(row, partial(self._gpu_peaks, row, spec, shape))
                free_memory(self.device)
        turns: list[tuple[Row, str, Turn]] = []
        for spec, row in rows.items():
            row.pop("times", None)  # of a process that was lost
            self._unless_failed(row, partial(self._add_turns, turns, row, spec, shape))
        interleave(
            turns, self.args.rounds, self.device, self.budget, self.results, before_turn=lambda turn: turn.ready()
        )
        turns.clear()
        if self.device.type == "cpu" and self.args.memory:
            for spec, row in rows.items():
                if not self.budget.spent():
                    self._unless_failed(row, partial(self._cpu_peaks, row, spec, shape))

    def _unless_failed(self, row: Row, action: Callable[[], None]) -> None:
        if "failed" in row:
            return
        if self.budget.spent():
            row["failed"] = "not measured: the time budget was spent"
            return
        with guarded(row, self.results, self.device):
            action()

    def _gpu_peaks(self, row: Row, spec: str, shape: Shape) -> None:
        before = torch.cuda.memory_allocated(self.device)
        trial = Trial(spec, shape, self.device, self.args.amp)
        for mode in self.args.modes:
            trial.network.train(mode == "train")
            if mode == "forward":
                trial.optimizer.state.clear()
            for _ in range(WARM_UPS):
                trial.run(mode)
            trial.optimizer.zero_grad(set_to_none=True)
            resting = torch.cuda.memory_allocated(self.device) - before
            peak = resting + peak_on_gpu(partial(trial.run, mode), self.device)
            row.setdefault("peak_bytes", {})[mode] = peak

    def _add_turns(self, turns: list[tuple[Row, str, Turn]], row: Row, spec: str, shape: Shape) -> None:
        trial = Trial(spec, shape, self.device, self.args.amp, self.args.cuda_graph)
        row["parameters"] = trial.parameters
        for mode in self.args.modes:
            turn = Turn(trial, mode)
            turn.ready()
            turn()
            turns.append((row, mode, turn))

    def _cpu_peaks(self, row: Row, spec: str, shape: Shape) -> None:
        for mode in self.args.modes:
            options = ["--memory-of", spec, mode, "--shapes", str(shape), "--threads", str(self.args.threads)]
            options += ["--amp"] if self.args.amp else []
            row.setdefault("peak_bytes", {})[mode] = peak_in_fresh_process(Path(__file__), options)


def specs(args: argparse.Namespace, shape: Shape) -> list[str]:
    """The networks asked for, or all; lightm_unet without a backend stands for every one that runs here."""
    report = backend_report(args.device)
    backends = args.backends or [name for name, why in report.items() if why is None and name != "naive"]
    wanted = args.networks or default_specs(args.device, shape, backends)
    return [
        name
        for spec in wanted
        for name in ([f"lightm_unet:{backend}" for backend in backends] if spec == "lightm_unet" else [spec])
    ]


def peak_of_this_process(spec: str, mode: str, shape: Shape, amp: bool) -> int:
    """What building and running the network once makes this process grow by."""

    def whole() -> None:
        trial = Trial(spec, shape, torch.device("cpu"), amp)
        trial.ready(mode)
        trial.run(mode)

    if spec.startswith(SCANNING):  # what a just-in-time compiler takes once is not the network's
        small = shape._replace(batch=1, spatial=(16,) * shape.dims)
        Trial(spec, small, torch.device("cpu"), amp).run(mode)
    return peak_resident(whole)


def report(content: dict[str, Any]) -> str:
    """The tables of one run, from what its JSON file holds."""
    settings = content["settings"]
    precision = "bfloat16 autocast" if settings["amp"] else f"float32, matmul precision {settings['matmul_precision']}"
    graphs = "; each pass replayed as a CUDA graph" if settings["cuda_graph"] else ""
    head = f"{environment_line(content['environment'])}; {precision}{graphs}; medians of {settings['rounds']} rounds"
    parts = [head]
    for shape in dict.fromkeys(row["shape"] for row in content["rows"]):
        parts.append(f"**{shape}**\n\n{shape_table([row for row in content['rows'] if row['shape'] == shape])}")
    return "\n\n".join(parts)


def shape_table(rows: list[Row]) -> str:
    """One line a network; the last columns say how many times as fast as a baseline it is, train / forward."""
    modes = [mode for mode in MODES if any(f"{mode}_ms" in row for row in rows)]
    baselines = [base for name in BASELINES if (base := _baseline(rows, name))]
    times = {"train": "train step ms", "forward": "forward ms"}
    headers = ["network", "parameters", *(times[mode] for mode in modes)]
    with_peaks = any("peak_bytes" in row for row in rows)
    headers += [f"peak GiB ({' / '.join(modes)})"] * with_peaks
    headers += [f"times as fast as {base['network']}" for base in baselines]
    lines, notes = [], []
    for row in rows:
        if "failed" in row:
            notes.append(f"{row['network']} failed: {row['failed']}")
        cells = [row["network"], f"{row['parameters']:,}" if "parameters" in row else "-"]
        cells += [number(row.get(f"{mode}_ms"), 3) for mode in modes]
        found = row.get("peak_bytes", {})
        cells += [in_one_cell([found[mode] / 2**30 if mode in found else None for mode in modes], ".2f")] * with_peaks
        cells += [in_one_cell([ratio(base, row, mode) for mode in modes], ".2f") for base in baselines]
        lines.append(cells)
    return "\n\n".join([markdown_table(headers, lines), *notes])


def _baseline(rows: list[Row], name: str) -> Row | None:
    """The measured row of a network, whatever its options."""
    found = (row for row in rows if row["network"].split(":")[0] == name)
    return next((row for row in found if any(f"{mode}_ms" in row for mode in MODES)), None)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = comparison_parser(__doc__)
    parser.add_argument("--networks", nargs="+", metavar="SPEC", help="default: all of them")
    parser.add_argument("--backends", nargs="+", help="of lightm_unet; default: all that can run here, but naive")
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="BxCxHxW", help="default: by the device")
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default: both on a GPU, forward on a CPU")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--matmul-precision", default="highest", choices=["highest", "high", "medium"])
    parser.add_argument("--profile", nargs="+", metavar="SPEC", help="instead: the kernels that take longest")
    parser.add_argument("--memory-of", nargs=2, metavar=("SPEC", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    on_gpu = args.device.type == "cuda"
    args.modes = args.modes or (list(MODES) if on_gpu else ["forward"])
    args.shapes = args.shapes or [parse_shape(text) for text in (GPU_SHAPES if on_gpu else CPU_SHAPES)]
    return args


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; what happens to one shape does not touch the others."""
    run = Run(args)
    steps = [(str(shape), partial(run.table, shape)) for shape in args.shapes]
    run_steps(steps, run.results, args.device, run.budget)
    return run.results.content


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    torch.backends.cudnn.benchmark = True
    if args.memory_of:
        print(peak_of_this_process(*args.memory_of, args.shapes[0], args.amp))
        return
    if args.profile:
        for spec in args.profile:
            for shape in args.shapes:
                for mode in args.modes:
                    print(profile(spec, shape, args.device, args.amp, mode), flush=True)
        return
    contents = [load_results(path, "networks") for path in args.from_json or ()] or [measure(args)]
    print("\n\n".join(report(content) for content in contents))


if __name__ == "__main__":
    main()
