"""What augmentation costs: a loader's worker, and the device that trains.

    python benchmarks/augmentation.py --json benchmarks/results/augmentation_cpu.json
    python benchmarks/augmentation.py --device cuda --json benchmarks/results/augmentation_h200.json
    python benchmarks/augmentation.py --from-json FILE.json

Patches of generated cases, float16 in memory-mapped files as training has them. Of one worker, which has one thread:
patches a second that are only cut (what it does for a GPU), cut and augmented (what it does for a CPU), and cropped and
augmented by MONAI's transforms with nnU-Net's table. Of the device: milliseconds of a batch's augmentation, as the
device needs them and as the host needs them to start it.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Results, load_results, markdown_table, number, processor_seconds, report, synchronize
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    SpatialPadd,
    Transform,
)
from options import argument_parser

BUNDLE = Path(__file__).parents[1] / "bundle"
sys.path.insert(0, str(BUNDLE))

from scripts.data.augmentation import Augmentation, Cut  # noqa: E402
from scripts.data.loading import augmented_batch  # noqa: E402

BENCHMARK = "augmentation"
# Patch, batch, and the case that patches are cut out of.
SHAPES = [((40, 56, 40), 9, (48, 60, 48)), ((128, 128, 128), 2, (256, 256, 200)), ((256, 256), 4, (512, 512))]
BATCHES = 40  # different ones, of which the device works on each in turn
Case = dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(report(load_results(options.from_json, BENCHMARK), table))
        return
    results = Results(options.json, BENCHMARK, options.device, {"batches": BATCHES})
    with tempfile.TemporaryDirectory() as folder:
        for patch, batch, shape in SHAPES:
            case = write_case(Path(folder), shape)
            row = results.row(patch=patch, batch=batch)
            row |= on_a_worker(case, patch, batch, options.seconds)
            row |= on_the_device(case, patch, batch, options.device, options.seconds)
            results.save()
    print(report(results.content, table))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--seconds", type=float, default=5, help="at least so long per figure")
    return parser.parse_args(arguments)


def write_case(folder: Path, shape: Sequence[int]) -> Case:
    """Noise with an ellipsoid in it, memory-mapped."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in shape), indexing="ij", sparse=True)
    label = (sum(axes) < 0.3).astype(np.int8)
    voxels = np.stack(np.unravel_index(rng.choice(np.flatnonzero(label), 10_000), shape))
    arrays = {
        "image": (rng.normal(size=shape).astype(np.float32) + label).astype(np.float16)[None],
        "label": label[None],
        "foreground": np.concatenate([np.ones((1, 10_000), int), voxels]).astype(np.int32),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def on_a_worker(case: Case, patch: Sequence[int], batch: int, seconds: float) -> dict[str, float]:
    """Patches a second of one process with one thread, in processor time."""
    augment = Augmentation(patch, range(len(patch)))
    monai = Compose(monai_augmentation(len(patch), patch, range(len(patch))))
    whole = {key: torch.from_numpy(np.array(case[key])).float() for key in ("image", "label")}
    ways: dict[str, Callable[[int], Any]] = {
        "cut": lambda number: augment.gather(cuts(augment, case, batch, number)),
        "augmented": lambda number: augmented_batch(augment, cuts(augment, case, batch, number)),
        "monai": lambda number: [monai(dict(whole)) for _ in range(batch)],
    }
    return {f"{name}_per_second": batch / processor_seconds(way, seconds, least=3) for name, way in ways.items()}


def cuts(augment: Augmentation, case: Case, batch: int, seed: int) -> list[Cut]:
    random = np.random.default_rng(seed)
    return [augment.cut(case, random) for _ in range(batch)]


def on_the_device(
    case: Case, patch: Sequence[int], batch: int, device: torch.device, seconds: float
) -> dict[str, float]:
    """Milliseconds of a batch: until the device is done, and until the host has started everything."""
    augment = Augmentation(patch, range(len(patch)))
    raw = [augment.gather(cuts(augment, case, batch, seed)) for seed in range(BATCHES)]
    if device.type == "cuda":
        raw = [one.pin_memory() for one in raw]
    for one in raw:
        augment.finish(one, device)
    synchronize(device)
    whole, host, rounds, begin = 0.0, 0.0, 0, time.perf_counter()
    while rounds < 1 or time.perf_counter() - begin < seconds:
        rounds += 1
        for one in raw:
            start = time.perf_counter()
            augment.finish(one, device)
            host += time.perf_counter() - start
            synchronize(device)
            whole += time.perf_counter() - start
    return {"batch_ms": whole / rounds / len(raw) * 1e3, "host_ms": host / rounds / len(raw) * 1e3}


def monai_augmentation(spatial_dims: int, patch_size: Sequence[int], mirror_axes: Sequence[int]) -> list[Transform]:
    """nnU-Net's table in MONAI's transforms."""
    both, image = ["image", "label"], ["image"]
    angle = math.radians(180 if spatial_dims == 2 else 30)
    rotation = {"rotate_range": angle if spatial_dims == 2 else [angle] * 3}
    scaling = {"scale_range": [(-0.3, 0.4)] * spatial_dims}  # MONAI adds 1
    affine: dict[str, Any] = {"mode": ("bilinear", "nearest"), "padding_mode": "zeros"}
    upsampling = "bilinear" if spatial_dims == 2 else "trilinear"
    return [
        SpatialPadd(both, patch_size),
        RandCropByPosNegLabeld(both, "label", spatial_size=patch_size, pos=1, neg=2, num_samples=1),
        RandAffined(both, prob=0.2, **rotation, **affine),
        RandAffined(both, prob=0.2, **scaling, **affine),
        RandGaussianNoised(image, prob=0.1, std=math.sqrt(0.1)),
        RandGaussianSmoothd(image, prob=0.2, **dict.fromkeys(["sigma_x", "sigma_y", "sigma_z"], (0.5, 1.0))),
        RandScaleIntensityd(image, factors=0.25, prob=0.15),
        RandScaleIntensityd(image, factors=0.25, prob=0.15),  # in place of nnU-Net's contrast
        RandSimulateLowResolutiond(image, prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=upsampling),
        RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), retain_stats=True, invert_image=True),
        RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in mirror_axes),
    ]


def table(content: dict[str, Any]) -> str:
    """One line a shape."""
    body = [
        [
            f"{row['batch']}x1x{'x'.join(map(str, row['patch']))}",
            *(number(row[f"{name}_per_second"], 3) for name in ("cut", "augmented", "monai")),
            *(number(row[name], 3) for name in ("batch_ms", "host_ms")),
        ]
        for row in content["rows"]
    ]
    where = "GPU" if content["environment"]["device_type"] == "cuda" else "CPU"
    headers = ["batch", "cut/s", "cut and augmented/s", "by MONAI/s", f"{where}: ms a batch", "to start it, ms"]
    return markdown_table(headers, body)


if __name__ == "__main__":
    main()
