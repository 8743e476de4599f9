"""Whole iterations of `run training` beside the bare step of the same trainer: what data and handlers add.

    python benchmarks/iterations.py --device cuda --workers 2 --json benchmarks/results/iterations_h200.json
    python benchmarks/iterations.py --from-json FILE.json

Trains with configs/train.json on generated volumes, in this process. The bare step is the trainer's own, again and
again with one batch that is already on the device: forward, loss, backward, clipping, optimiser. A whole iteration is
the mean of an epoch, from log.jsonl; so is the share of the time that it waited for data. "Start" is from the start of
an epoch to its first batch, in the first epoch and in the later ones (median).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from harness import Results, free_memory, load_results, markdown_table, number, report, synchronize
from ignite.engine import Events
from options import argument_parser

BUNDLE = Path(__file__).parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

BENCHMARK = "iterations"
CASES = 10
# Patch, batch, volume, and the axis along which a 2D network walks through it.
SHAPES = {
    "9x1x40x56x40": ((40, 56, 40), 9, (38, 52, 38), None),
    "2x1x128x128x128": ((128, 128, 128), 2, (200, 200, 160), None),
    "4x1x256x256": ((256, 256), 4, (512, 512, 24), 2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(report(load_results(options.from_json, BENCHMARK), table))
        return
    settings = {"workers": options.workers, "iterations": options.iterations, "overrides": options.set}
    results = Results(options.json, BENCHMARK, options.device, settings)
    for name in options.shapes:
        with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
            results.row(shape=name).update(measure(Path(folder), name, options))
        results.save()
        free_memory(options.device)
    print(report(results.content, table))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4, help="the first is not counted")
    parser.add_argument("--iterations", type=int, default=100, help="of an epoch")
    parser.add_argument("--set", type=json.loads, default={}, help='other settings of the run, {"init_filters": 16}')
    parser.add_argument("--temporary", type=Path, help="where volumes and runs go for the time being")
    return parser.parse_args(arguments)


def measure(folder: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    import monai.bundle

    patch, batch, volume, slice_axis = SHAPES[name]
    write_dataset(folder / "data", volume)
    overlay = folder / "task.json"
    overlay.write_text(json.dumps(task(folder / "data", patch, batch, slice_axis)), encoding="utf-8")
    overrides = {
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "device": str(options.device),
        "num_workers": options.workers,
        "epochs": options.epochs,
        "iterations_per_epoch": options.iterations,
        "val_interval": options.epochs,
        **options.set,
    }
    configs = [str(BUNDLE / "configs/train.json"), str(overlay)]
    workflow = monai.bundle.ConfigWorkflow(configs, bundle_root=str(BUNDLE), **overrides)
    workflow.initialize()
    trainer = workflow.trainer
    starts = watch_starts(trainer)
    workflow.run()
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    whole = [batch / line["samples_per_second"] * 1e3 for line in lines]
    waited = [line["data_seconds"] / options.iterations * 1e3 for line in lines]
    return {
        "bare_ms": bare_step(trainer, (batch, 1, *patch), options.device),
        "iteration_ms": statistics.median(whole),
        "waited_share": statistics.median(a / b for a, b in zip(waited, whole, strict=True)),
        "first_start_s": starts[0],
        "start_s": statistics.median(starts[1:]),
    }


def task(data: Path, patch: Sequence[int], batch: int, slice_axis: int | None) -> dict[str, Any]:
    return {
        "name": "generated",
        "dataset_dir": str(data),
        "spatial_dims": len(patch),
        "slice_axis": slice_axis,
        "in_channels": 1,
        "labels": {"ball": 1, "core": 2},
        "ignore_label": None,
        "regions": {},
        "spacing": None,
        "normalization": ["zscore"],
        "crop_nonzero": False,
        "patch_size": list(patch),
        "strides": None,
        "batch_size": batch,
        "mirror_axes": list(range(len(patch))),
    }


def write_dataset(folder: Path, shape: Sequence[int]) -> None:
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in shape), indexing="ij", sparse=True)
    label = (sum(axes) < 0.4).astype(np.uint8) + (sum(axes) < 0.05)
    cases = []
    for index in range(CASES):
        image = rng.normal(size=shape).astype(np.float32) + label
        case = {"image": f"./imagesTr/case_{index}.nii", "label": f"./labelsTr/case_{index}.nii"}
        for key, array in (("image", image), ("label", label.astype(np.uint8))):
            (folder / case[key]).parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / case[key])
        cases.append(case)
    description = {"labels": {"0": "background", "1": "ball", "2": "core"}, "training": cases}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def watch_starts(trainer: Any) -> list[float]:
    """Seconds from the start of each epoch to its first batch, filled as the epochs come."""
    starts: list[float] = []
    begin = 0.0

    def start(engine: Any) -> None:
        nonlocal begin
        begin = time.perf_counter()

    def first(engine: Any) -> None:
        if len(starts) < engine.state.epoch:
            starts.append(time.perf_counter() - begin)

    trainer.add_event_handler(Events.EPOCH_STARTED, start)
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, first)
    return starts


def bare_step(trainer: Any, shape: Sequence[int], device: torch.device, seconds: float = 3) -> float:
    """Median of steps with one batch, each waited for."""
    batch = {
        "image": torch.randn(shape, device=device),
        "label": torch.randint(0, 3, shape, device=device, dtype=torch.int16),
    }
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        trainer._iteration(trainer, batch)
        synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def table(content: dict[str, Any]) -> str:
    """One line a shape."""
    body = [
        [
            row["shape"],
            number(row["bare_ms"], 3),
            number(row["iteration_ms"], 3),
            number(row["iteration_ms"] / row["bare_ms"], 3),
            f"{row['waited_share']:.1%}",
            number(row["first_start_s"], 2),
            number(row["start_s"], 2),
        ]
        for row in content["rows"]
    ]
    workers = content["settings"]["workers"]
    headers = [
        "batch",
        "step, ms",
        f"iteration, {workers} workers, ms",
        "ratio",
        "waited",
        "first start, s",
        "start, s",
    ]
    return markdown_table(headers, body)


if __name__ == "__main__":
    main()
