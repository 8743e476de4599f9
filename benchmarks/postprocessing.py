"""Time keeping the largest component of each label, filling holes and surface metrics against the alternatives.

    python benchmarks/postprocessing.py                                  # 13 labels at 192^3, a few minutes
    python benchmarks/postprocessing.py --json benchmarks/results/postprocessing_cpu.json
    python benchmarks/postprocessing.py --from-json FILE.json

The label map is 13 blobs as organs lie, and their prediction: shifted by up to some voxels and with 60 specks. Each
candidate does the whole job on it, and its result is compared with the first one's. Candidates take turns within a
round; a figure is the median over rounds. All run with the threads that they choose themselves.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import (
    Budget,
    Results,
    environment_line,
    guarded,
    installed_versions,
    interleave,
    load_results,
    markdown_table,
    number,
)
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.transforms import FillHoles, KeepLargestConnectedComponent
from options import argument_parser
from scipy import ndimage
from skimage import measure

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))

from scripts.metrics import case_scores
from scripts.metrics.components import find_components, find_holes, keep_components
from scripts.metrics.surface import surface

BENCHMARK = "postprocessing"
PACKAGES = ("scipy", "scikit-image", "SimpleITK", "monai", "connected-components-3d")
SPACING = (0.8, 0.8, 1.5)
TOLERANCE = 1.0
JOBS = {"largest": "Largest component of each label", "holes": "Holes of each label", "surface": "HD95, ASSD and NSD"}

Maps = tuple[np.ndarray, np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(report(load_results(options.from_json, BENCHMARK)))
        return
    device = torch.device("cpu")
    settings = {
        "size": options.size,
        "labels": options.labels,
        "spacing": SPACING,
        "versions": installed_versions(PACKAGES),
    }
    results = Results(options.json, BENCHMARK, device, settings)
    maps = label_maps(options.size, options.labels)
    for job in options.jobs:
        turns, first = [], None
        for name, call in CANDIDATES[job](*maps, options.labels).items():
            row = results.row(job=job, name=name)
            with guarded(row, results, device):
                result = call()  # also warms up
                first = result if first is None else first
                row["difference"] = float(np.abs(np.asarray(result, float) - np.asarray(first, float)).max())
            turns.append((row, "time", call))
        interleave(turns, options.rounds, device, Budget(options.budget_s), results)
    print(report(results.content))


def label_maps(size: int, labels: int) -> Maps:
    """(prediction, label), uint8."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 3, indexing="ij"))
    rough = ndimage.gaussian_filter(rng.standard_normal((size,) * 3, dtype=np.float32), 4)
    label = np.zeros((size,) * 3, np.uint8)
    for value in range(1, labels + 1):
        centre, radii = rng.uniform(0.18 * size, 0.82 * size, 3), rng.uniform(0.04 * size, 0.18 * size, 3)
        distance = (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0)
        label[(distance + 0.15 * rough / rough.std() < 1) & (label == 0)] = value
    shift = ndimage.gaussian_filter(rng.standard_normal((3, *label.shape), dtype=np.float32), (0, 6, 6, 6))
    prediction = ndimage.map_coordinates(label, grid + 2 * shift / shift.std(), order=0)
    for _ in range(60):
        radius, centre = rng.integers(1, 5), rng.integers(5, size - 5, 3)
        prediction[tuple(slice(c - radius, c + radius) for c in centre)] = rng.integers(1, labels + 1)
    for _ in range(60):
        prediction[tuple(rng.integers(5, size - 5, 3))] = 0
    for label_map in (prediction, label):
        label_map.setflags(write=False)  # no candidate may hand the next one an easier task
    return prediction, label


def largest(prediction: np.ndarray, _: np.ndarray, labels: int) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to keep the largest component of each label, as label maps."""

    def ours() -> np.ndarray:
        components = find_components(prediction)
        kept = np.zeros(len(components.sizes), bool)
        kept[[components.largest(components.values == value) for value in range(1, labels + 1)]] = True
        return keep_components(prediction, components, kept)

    def one_pass(label: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        numbers = label(prediction).ravel()
        sizes, values = np.bincount(numbers), np.zeros(numbers.max() + 1, int)
        values[numbers] = prediction.ravel()
        kept = np.zeros(len(sizes), bool)
        kept[[np.where(values == value, sizes, 0).argmax() for value in range(1, labels + 1)]] = True
        return np.where(kept[numbers], prediction.ravel(), 0).reshape(prediction.shape)

    def each(keep: Callable[[np.ndarray], np.ndarray], crop: bool = True) -> np.ndarray:
        result = prediction.copy()
        whole = [tuple(slice(None) for _ in prediction.shape)] * labels
        for value, box in enumerate(ndimage.find_objects(prediction) if crop else whole, 1):
            if box:
                part, mask = result[box], prediction[box] == value
                part[mask & ~keep(mask)] = 0
        return result

    def by_count(numbers: np.ndarray) -> np.ndarray:
        sizes = np.bincount(numbers.ravel())
        sizes[0] = 0
        return numbers == sizes.argmax()

    def simpleitk(mask: np.ndarray) -> np.ndarray:
        import SimpleITK as sitk

        components = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
        return sitk.GetArrayViewFromImage(sitk.RelabelComponent(components)) == 1

    def cc3d_labels(label_map: np.ndarray) -> np.ndarray:
        import cc3d

        return cc3d.connected_components(label_map, connectivity=26)

    def scipy_labels(mask: np.ndarray) -> np.ndarray:
        return ndimage.label(mask, np.ones((3, 3, 3)))[0]

    def skimage_labels(label_map: np.ndarray) -> np.ndarray:
        return measure.label(label_map, background=0, connectivity=3)

    def monai() -> np.ndarray:
        keep = KeepLargestConnectedComponent(applied_labels=range(1, labels + 1))
        return np.asarray(keep(torch.from_numpy(prediction.copy())[None])[0])  # it works in place

    return {
        "ours (scikit-image, all labels at once)": ours,
        "cc3d, all labels at once": lambda: one_pass(cc3d_labels),
        "cc3d, label by label on its box": lambda: each(lambda mask: by_count(cc3d_labels(mask))),
        "scikit-image, label by label on its box": lambda: each(lambda mask: by_count(skimage_labels(mask))),
        "scipy, label by label on its box": lambda: each(lambda mask: by_count(scipy_labels(mask))),
        "SimpleITK, label by label on its box": lambda: each(simpleitk),
        "scipy, label by label, whole volume": lambda: each(lambda mask: by_count(scipy_labels(mask)), crop=False),
        "MONAI KeepLargestConnectedComponent": monai,
    }


def holes(prediction: np.ndarray, _: np.ndarray, labels: int) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to fill holes. They differ where a hole is not enclosed by one label alone."""

    def ours() -> np.ndarray:
        found = find_holes(prediction)
        return np.where(found > 0, found, prediction)

    def each(fill: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        result = prediction.copy()
        for value, box in enumerate(ndimage.find_objects(prediction), 1):
            if box:
                part = result[box]
                part[fill(prediction[box] == value) & (part == 0)] = value
        return result

    def simpleitk(mask: np.ndarray) -> np.ndarray:
        import SimpleITK as sitk

        filled = sitk.BinaryFillhole(sitk.GetImageFromArray(mask.astype(np.uint8)), False, 1)
        return sitk.GetArrayViewFromImage(filled) == 1

    def monai() -> np.ndarray:
        fill = FillHoles(applied_labels=range(1, labels + 1))
        return np.asarray(fill(torch.from_numpy(prediction.copy())[None])[0])

    return {
        "ours (scikit-image, all labels at once)": ours,
        "scipy, label by label on its box": lambda: each(ndimage.binary_fill_holes),
        "SimpleITK, label by label on its box": lambda: each(simpleitk),
        "MONAI FillHoles": monai,
    }


def surfaces(prediction: np.ndarray, label: np.ndarray, labels: int) -> dict[str, Callable[[], np.ndarray]]:
    """Ways to compute (labels, 3): HD95, ASSD and NSD; ours computes overlap and volumes besides."""

    def ours() -> np.ndarray:
        scores = case_scores(prediction, label, {str(v): v for v in range(1, labels + 1)}, SPACING, tolerance=TOLERANCE)
        return np.array([[own[key] for key in ("hd95", "assd", "nsd")] for own in scores.values()])

    def transformed(distance_to: Callable[[np.ndarray], np.ndarray], crop: bool = True) -> np.ndarray:
        rows = []
        for value in range(1, labels + 1):
            masks = prediction == value, label == value
            box = ndimage.find_objects((masks[0] | masks[1]).astype(np.uint8))[0] if crop else ...
            first, second = (surface(mask[box]) for mask in masks)
            there, back = distance_to(second)[first], distance_to(first)[second]
            both = np.concatenate([there, back])
            hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
            rows.append([hd95, both.mean(), (both <= TOLERANCE * (1 + 1e-6)).mean()])
        return np.array(rows)

    def scipy_distance(mask: np.ndarray) -> np.ndarray:
        return ndimage.distance_transform_edt(~mask, sampling=SPACING)

    def simpleitk_distance(mask: np.ndarray) -> np.ndarray:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing(SPACING[::-1])
        distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        return np.abs(sitk.GetArrayViewFromImage(distance))

    def monai() -> np.ndarray:
        one_hot = [torch.stack([torch.from_numpy(m == v) for v in range(1, labels + 1)])[None] for m in maps]
        options: dict[str, Any] = {"include_background": True, "spacing": SPACING}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = [
                compute_hausdorff_distance(*one_hot, percentile=95, **options),
                compute_average_surface_distance(*one_hot, symmetric=True, **options),
                compute_surface_dice(*one_hot, [TOLERANCE] * labels, **options),
            ]
        return torch.stack([column[0] for column in columns], 1).numpy()

    maps = prediction, label
    return {
        "ours (k-d tree of surface voxels, on boxes)": ours,
        "SimpleITK SignedMaurerDistanceMap, on boxes": lambda: transformed(simpleitk_distance),
        "scipy distance_transform_edt, on boxes": lambda: transformed(scipy_distance),
        "scipy distance_transform_edt, whole volume": lambda: transformed(scipy_distance, crop=False),
        "MONAI, its three functions": monai,
    }


CANDIDATES = {"largest": largest, "holes": holes, "surface": surfaces}


def report(content: dict[str, Any]) -> str:
    """Markdown: a table a job, with times relative to ours."""
    settings = content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    parts = [
        f"{settings['labels']} labels at {settings['size']}^3. {environment_line(content['environment'])}; {versions}"
    ]
    return "\n\n".join(parts + [table for job in JOBS if (table := job_table(content["rows"], job))])


def job_table(rows: list[dict[str, Any]], job: str) -> str:
    """One line a candidate of the job, with its time relative to ours, the first; empty if the job was left out."""
    found = [row for row in rows if row["job"] == job]
    headers = [JOBS[job], "ms", "times ours", "largest difference"]
    return markdown_table(headers, [_cells(row, found[0]) for row in found]) if found else ""


def _cells(row: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [f"{row['name']}: {row['failed']}", "-", "-", "-"]
    time, base = row.get("time_ms"), ours.get("time_ms")
    ratio = time / base if time and base else None
    return [row["name"], number(time, 3), number(ratio, 2), f"{row['difference']:.2g}"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--size", type=int, default=192, help="voxels along each axis")
    parser.add_argument("--labels", type=int, default=13)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget-s", type=float, default=600, help="per job")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
