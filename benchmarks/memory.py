"""Peak memory of a train step of LightM-UNet, as a line a + b * voxels that planning reads, and a Markdown table.

    python benchmarks/memory.py --device cuda                        # writes bundle/scripts/planning/memory.json
    python benchmarks/memory.py --device cpu --tiny                  # a trial of the script; prints only
    python benchmarks/memory.py --from-json FILE.json                # prints the table of a file again

A train step of the network that planning chooses is the forward pass, Dice and cross-entropy, the backward pass and
AdamW: in float32, under bfloat16 autocast, and there also with what `recompute_activations` computes again kept
(amp_kept). On a GPU the figure is the allocator's peak with weights, moments and input. Each line has the slope of a
least-squares fit and is then raised until no measurement lies above it. Two more steps are measured for the table
alone or for one number: with the strides of thick slices, which planning predicts from the lines, and with more
classes. A CPU has no such counter: there the figure is what autograd keeps for the backward pass, a lower bound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import Budget, environment, environment_line, free_memory, markdown_table, peak_on_gpu
from network_candidates import default_options

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.common.readable_json import write_json
from scripts.engines.losses import DiceCELoss
from scripts.networks import LightMUNet
from scripts.planning.memory import GIB, MODES, StepMemory

MEMORY_JSON = Path(__file__).resolve().parents[1] / "bundle" / "scripts" / "planning" / "memory.json"
FILTERS = (32, 16, 8, 64)  # the likeliest first, should time run out
CLASSES, MANY_CLASSES = 3, 35
# Batch, then the patch. The batch is the smallest that planning chooses: the inside of a VSS layer is computed item by
# item where it is large, so that few large patches take more a voxel than many small ones. The first step of a network
# is its smallest: it compiles and makes Adam's moments.
SIZES = {
    2: ((2, 256, 256), (2, 512, 512), (2, 1536, 1536)),
    3: ((2, 64, 64, 64), (2, 96, 128, 128), (2, 160, 192, 192)),
}
TINY_SIZES = {2: ((1, 32, 32), (2, 32, 32), (2, 32, 64)), 3: ((1, 16, 16, 16), (2, 16, 16, 16), (2, 16, 16, 32))}
THICK_SLICES = [[2, 2, 1], [2, 2, 1], [2, 2, 2]]

Size = tuple[int, ...]


class Case(NamedTuple):
    """One network in one mode."""

    spatial_dims: int
    init_filters: int
    mode: str
    classes: int = CLASSES
    strides: list[list[int]] | None = None


class Step:
    """A network on a device that takes train steps on random images of any size."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        options = default_options() | {"recompute_activations": case.mode != "amp_kept", "strides": case.strides}
        network = LightMUNet(case.spatial_dims, 1, case.classes, init_filters=case.init_filters, **options)
        self.network = network.to(device)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        self.loss = DiceCELoss()

    def __call__(self, size: Size) -> None:
        batch, *spatial = size
        image = torch.randn(batch, 1, *spatial, device=self.device)
        label = torch.randint(self.case.classes, (batch, 1, *spatial), device=self.device)
        self.optimizer.zero_grad()
        in_half = self.case.mode.startswith("amp")
        amp = torch.autocast(self.device.type, torch.bfloat16) if in_half else nullcontext()
        with amp:
            loss = self.loss(self.network(image), label)
        loss.backward()
        self.optimizer.step()

    def resting(self) -> int:
        """Bytes of the weights and Adam's moments; the gradients belong to the peak of a step."""
        tensors = [*self.network.parameters()]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in tensors)


def measure(case: Case, sizes: Sequence[Size], device: torch.device) -> list[dict[str, Any]]:
    """The peak at each size: [{"size", "voxels", "gib"}]. Sizes that the GPU cannot hold are left out."""
    step, rows = Step(case, device), []
    step(sizes[0])
    step.optimizer.zero_grad()
    for size in sizes:
        try:
            peak = peak_on_gpu(partial(step, size), device) if device.type == "cuda" else kept(step, size)
        except torch.OutOfMemoryError:
            print(f"{case}: {size} does not fit", file=sys.stderr)
            break
        step.optimizer.zero_grad()
        rows.append({"size": list(size), "voxels": math.prod(size), "gib": round((step.resting() + peak) / GIB, 4)})
    del step
    free_memory(device)
    return rows


def kept(step: Callable[[Size], None], size: Size) -> int:
    """Bytes that autograd keeps for the backward pass of a step, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(size)
    return sum(storages.values())


def fit(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """GiB at no voxels and bytes a voxel of a line that no measurement lies above.

    The slope is that of least squares, or that to the largest measurement if the line met 0 below no GiB.
    """
    voxels, gib = [row["voxels"] for row in rows], [row["gib"] for row in rows]
    middle_v, middle_g = sum(voxels) / len(rows), sum(gib) / len(rows)
    spread = sum((v - middle_v) ** 2 for v in voxels)
    slope = sum((v - middle_v) * (g - middle_g) for v, g in zip(voxels, gib, strict=True)) / spread if spread else 0.0
    slope = max(slope, 0.0)
    base = max(g - slope * v for v, g in zip(voxels, gib, strict=True))
    if base < 0:
        base, slope = 0.0, max(g / v for v, g in zip(voxels, gib, strict=True))
    return math.ceil(base * 1e4) / 1e4, math.ceil(slope * GIB * 10) / 10


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that memory.json holds."""
    sizes, budget, fits = TINY_SIZES if args.tiny else SIZES, Budget(args.budget_s), []
    for filters, dims, mode in product(args.filters, args.dims, MODES):
        if budget.spent():
            print(f"the time budget is spent: {filters} filters in {dims}D, {mode}, not measured", file=sys.stderr)
            continue
        rows = measure(Case(dims, filters, mode), sizes[dims], args.device)
        if len(rows) > 1:
            base, slope = fit(rows)
            case = {"spatial_dims": dims, "init_filters": filters, "mode": mode}
            fits.append(case | {"base_gib": base, "bytes_per_voxel": slope, "measured": rows})
    where = environment(args.device)
    return {
        "source": f"benchmarks/memory.py: {environment_line(where)}",
        "classes": CLASSES,
        "bytes_per_class_and_voxel": class_bytes(args, sizes),
        "fits": sorted(fits, key=lambda found: (found["spatial_dims"], found["init_filters"], found["mode"])),
        "thick_slices": thick_slices(args, sizes),
    }


def class_bytes(args: argparse.Namespace, sizes: dict[int, Sequence[Size]]) -> float:
    """What one more class takes a voxel, from the narrowest network: there the loss binds first."""
    dims, filters = args.dims[-1], min(args.filters)
    size = sizes[dims][1]
    few, many = (measure(Case(dims, filters, "amp", n), [size], args.device) for n in (CLASSES, MANY_CLASSES))
    extra = (many[-1]["gib"] - few[-1]["gib"]) * GIB / (MANY_CLASSES - CLASSES) / math.prod(size)
    return math.ceil(max(extra, 0.0) * 10) / 10


def thick_slices(args: argparse.Namespace, sizes: dict[int, Sequence[Size]]) -> dict[str, Any] | None:
    """A network that hardly pools its last axis, beside which planning's prediction is held."""
    if 3 not in args.dims:
        return None
    case = Case(3, args.filters[0], "amp", strides=THICK_SLICES)
    rows = measure(case, sizes[3][:2], args.device)
    return {"init_filters": case.init_filters, "mode": case.mode, "strides": case.strides, "measured": rows}


def report(table: dict[str, Any]) -> str:
    """What memory.json holds, as a table and two sentences."""
    parts = [table["source"], lines_table(table["fits"])]
    parts.append(f"Each class beyond {table['classes']}: {table['bytes_per_class_and_voxel']} bytes a voxel.")
    thick = table.get("thick_slices")
    matching = [] if not thick else [
        found for found in table["fits"] if _key(found) == ["3", str(thick["init_filters"]), thick["mode"]]
    ]  # fmt: skip
    for found in matching:
        line = StepMemory(3, found["base_gib"], found["bytes_per_voxel"], "")
        shown = _measurements(thick["measured"], line, thick["strides"])
        parts.append(f"Strides {thick['strides']}, {thick['init_filters']} filters, {thick['mode']}: {shown}.")
    return "\n\n".join(parts)


def lines_table(fits: Sequence[dict[str, Any]]) -> str:
    """One row a network and mode: its line, the measurements and, in brackets, the line there."""
    headers = ["dims", "filters", "mode", "GiB at no voxels", "bytes a voxel", "measured: batch x patch, GiB (line)"]
    lines = []
    for found in fits:
        line = StepMemory(found["spatial_dims"], found["base_gib"], found["bytes_per_voxel"], "")
        lines.append([*_key(found), f"{found['base_gib']:.3f}", f"{found['bytes_per_voxel']:,.0f}"])
        lines[-1].append(_measurements(found.get("measured", ()), line, None))
    return markdown_table(headers, lines, text_columns=3)


def _key(found: dict[str, Any]) -> list[str]:
    return [str(found["spatial_dims"]), str(found["init_filters"]), found["mode"]]


def _measurements(rows: Sequence[dict[str, Any]], line: StepMemory, strides: list[list[int]] | None) -> str:
    shown = [f"{'x'.join(map(str, row['size']))} {row['gib']:.3g} ({line.gib(row['voxels'], strides):.3g})"
             for row in rows]  # fmt: skip
    return ", ".join(shown) or "-"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--filters", nargs="+", type=int, default=list(FILTERS), help="default: 8 16 32 64")
    parser.add_argument("--dims", nargs="+", type=int, choices=(2, 3), default=[2, 3], help="default: 2 3")
    parser.add_argument("--budget-s", type=float, default=120, help="start no line after so many seconds (120)")
    parser.add_argument("--tiny", action="store_true", help="a few voxels: tries the script, measures nothing useful")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: on a GPU, the bundle's memory.json")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, print the table of this file")
    args = parser.parse_args(arguments)
    if args.output is None and args.device.type == "cuda" and not args.tiny:
        args.output = MEMORY_JSON
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if args.from_json is not None:
        print(report(json.loads(args.from_json.read_text(encoding="utf-8"))))
        return
    table = calibrate(args)
    if args.output is not None:
        write_json(args.output, table)
    print(report(table))


if __name__ == "__main__":
    main()
