"""How many training patches a second the loader delivers, from preparation on disk to augmented batches.

    python benchmarks/dataloading.py --dataset_dir DIR          # a data set of a task overlay, and generated CT
    python benchmarks/dataloading.py --json benchmarks/results/dataloading_cpu.json --workers 2
    python benchmarks/dataloading.py --from-json FILE.json

Two loaders over the same cases: the bundle's (PreparedDataset, memory-mapped, its own augmentation), and what a MONAI
user would write (PersistentDataset, RandCropByPosNegLabeld, MONAI's transforms with the same probabilities and
ranges). Both have their caches on disk before the clock starts, and it starts with the first batch, so that neither
preprocessing nor the start of the workers counts. "CPU ms" is the processor time of one patch in one process, which
other work on the machine does not change much: 1000 / CPU ms is what a worker with a core of its own delivers. CT is
512 x 512 x 200 voxels, of noise and ellipsoids, already at its spacing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from augmentation import monai_augmentation
from harness import Results, load_results, markdown_table, number, processor_seconds, report
from monai.data import DataLoader, Dataset, PersistentDataset
from monai.transforms import Compose
from options import argument_parser
from torch.utils.data import RandomSampler

BUNDLE = Path(__file__).parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.augmentation import Augmentation  # noqa: E402
from scripts.data.datalist import load_cases  # noqa: E402
from scripts.data.loading import PatchLoader, RandomCases, augmented_batch  # noqa: E402
from scripts.data.preparation import prepare_cases  # noqa: E402
from scripts.data.prepared import PreparedDataset  # noqa: E402
from scripts.data.transforms import Preparation  # noqa: E402

BENCHMARK = "dataloading"
CT_SHAPE = (512, 512, 200)
CT_TASK = {
    "name": "generated CT 512x512x200",
    "spatial_dims": 3,
    "in_channels": 1,
    "labels": {"organ": 1, "lesion": 2},
    "spacing": [0.8, 0.8, 2.0],
    "normalization": [{"ct": {"lower": -150, "upper": 250, "mean": 60, "std": 50}}],
    "patch_size": [128, 128, 128],
    "batch_size": 2,
    "mirror_axes": [0, 1, 2],
}
Task = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(report(load_results(options.from_json, BENCHMARK), table))
        return
    results = Results(options.json, BENCHMARK, torch.device("cpu"), {"workers": options.workers})
    with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
        for task, cases in tasks(options, Path(folder)):
            for name, make in (("bundle", bundle_dataset), ("MONAI", monai_dataset)):
                dataset = make(task, cases, Path(folder) / f"{name}-{task['spatial_dims']}-{len(cases)}")
                row = results.row(data=task["name"], loader=name, patch=task["patch_size"], batch=task["batch_size"])
                row["samples_per_second"] = throughput(dataset, task["batch_size"], options.workers, options.seconds)
                row["cpu_ms"] = cpu_time(dataset, options.seconds)
                results.save()
    print(report(results.content, table))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--dataset_dir", type=Path, help="the data set of --task; left out without it")
    parser.add_argument("--task", type=Path, default=BUNDLE / "configs/tasks/hippocampus.json")
    parser.add_argument("--ct_volumes", type=int, default=3, help="generated volumes; 0: none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20, help="at least so long per loader")
    parser.add_argument("--temporary", type=Path, help="where volumes and caches go for the time being")
    return parser.parse_args(arguments)


def tasks(options: argparse.Namespace, folder: Path) -> list[tuple[Task, list[dict[str, Any]]]]:
    found = []
    if options.dataset_dir:
        task = json.loads(options.task.read_text(encoding="utf-8"))
        found.append((task, load_cases(options.dataset_dir, "all", task["in_channels"], task["labels"]).training))
    if options.ct_volumes:
        found.append((CT_TASK, [write_ct(folder, number) for number in range(options.ct_volumes)]))
    return found


def write_ct(folder: Path, seed: int) -> dict[str, str]:
    """Soft tissue and air with noise, a large organ and a small lesion in it."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, size, dtype=np.float32) ** 2 for size in CT_SHAPE]
    radius = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    label = (radius < 0.2).astype(np.uint8) + (radius < 0.005)
    image = np.where(radius < 0.8, 40, -1000) + 60 * label + rng.normal(0, 15, CT_SHAPE).astype(np.float32)
    case = {"name": f"ct_{seed}"}
    for key, array in (("image", image.astype(np.int16)), ("label", label)):
        case[key] = str(folder / f"{key}_{seed}.nii")
        nib.save(nib.Nifti1Image(array, np.diag([0.8, 0.8, 2.0, 1])), case[key])
    return case


def preparation_of(task: Task) -> Preparation:
    facts = ("spatial_dims", "in_channels", "labels", "spacing")
    return Preparation(**{name: task[name] for name in facts}, normalization=task.get("normalization"))


def bundle_dataset(task: Task, cases: list[dict[str, Any]], cache: Path) -> Dataset:
    augment = Augmentation(task["patch_size"], task["mirror_axes"])
    preparation = preparation_of(task)
    steps = preparation.transforms("image", "label")
    dataset = PreparedDataset(cases, steps, augment, cache, preparation)
    prepare_cases(dataset, PreparedDataset([], steps, None, cache, preparation), task["spacing"])
    return dataset


def monai_dataset(task: Task, cases: list[dict[str, Any]], cache: Path) -> Dataset:
    augment = monai_augmentation(task["spatial_dims"], task["patch_size"], task["mirror_axes"])
    steps = preparation_of(task).transforms("image", "label").transforms
    dataset = PersistentDataset(cases, Compose([*steps, *augment]), cache_dir=cache)
    for index in range(len(cases)):
        dataset._cachecheck(cases[index])
    return dataset


def throughput(dataset: Dataset, batch_size: int, workers: int, seconds: float) -> float:
    """Patches a second, from the first batch on; at least three batches a worker."""
    samples = 10**6
    if isinstance(dataset, PreparedDataset):
        sampler = RandomCases(dataset, samples, seed=0)
        loader = PatchLoader(dataset, sampler, batch_size, dataset.augment, num_workers=workers)
    else:
        sampler = RandomSampler(dataset, replacement=True, num_samples=samples)
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=workers)
    batches = iter(loader)
    next(batches)
    start, count = time.perf_counter(), 0
    while count < 3 * max(1, workers) or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    elapsed = time.perf_counter() - start
    del batches  # ends the workers
    return count * batch_size / elapsed


def cpu_time(dataset: Dataset, seconds: float) -> float:
    """Processor milliseconds of a patch, on one thread; a mean over at least ten patches."""
    is_ours = isinstance(dataset, PreparedDataset)

    def patch(number: int) -> Any:
        sample = dataset[number % len(dataset)]
        return augmented_batch(dataset.augment, [sample]) if is_ours else sample

    return processor_seconds(patch, seconds, least=10) * 1e3


def table(content: dict[str, Any]) -> str:
    """One line a data set and loader."""
    workers = content["settings"]["workers"]
    cells = [
        [
            row["data"],
            row["loader"],
            "x".join(map(str, row["patch"])),
            number(row["samples_per_second"], 3),
            number(row["samples_per_second"] / max(1, workers), 3),
            number(row["cpu_ms"], 3),
        ]
        for row in content["rows"]
    ]
    headers = ["data", "loader", "patch", f"patches/s, {workers} workers", "a worker", "CPU ms a patch"]
    return markdown_table(headers, cells, text_columns=3)


if __name__ == "__main__":
    main()
