"""One case read once: what is wrong with it, and the facts that the fingerprint is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from ..common.errors import UserError
from ..images.files import image_files
from ..images.formats import RawImage, channel_conflicts, read_raw
from ..images.geometry import affine_problem, displacement, grid_conflict, is_oblique
from ..images.label_names import listed, undeclared_hint

__all__ = ["CaseReport", "Problem", "examine_case"]

SAMPLES = 10_000
SEED = 1234
LARGEST_FLOAT = float(np.finfo(np.float32).max)
MOST_VALUES = 10_000  # of a label map
CHUNK = 2**20  # voxels that become float64 at a time


class Problem(NamedTuple):
    """Something wrong: the file, and what is the matter with it."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file} {self.message}"


@dataclass
class CaseReport:
    """What one reading of a case told.

    Args:
        name, file: of the case, and its (first) image file.
        errors, warnings: why it cannot be used; what the user should look at.
        shape: spatial, in the file's axis order; () if the image could not be read.
        channels: of the image; 0 if it could not be read.
        affine: 4x4 (RAS), or None where the file has none.
        dtype: of the image's voxels in the file.
        digest: of the image's pixels, equal for equal images in one format.
        values: label value -> number of voxels, background and ignored ones too.
        crop: (first, last + 1) per axis of the box around the nonzero voxels; None if there are errors.
        components: label value -> number of connected components.
        intensity: per channel {"min", "max", "mean", "std"} inside the crop.
        samples: (channels, SAMPLES) float32 intensities drawn from the foreground, or (channels, 0).
    """

    name: str
    file: str
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    channels: int = 0
    affine: np.ndarray | None = None
    dtype: str = ""
    digest: str = ""
    values: dict[int, int] = field(default_factory=dict)
    crop: list[tuple[int, int]] | None = None
    components: dict[int, int] = field(default_factory=dict)
    intensity: list[dict[str, float]] = field(default_factory=list)
    samples: np.ndarray | None = None


def examine_case(
    case: Mapping[str, Any], labels: Mapping[str, int], ignore_label: int | None = None, grey: bool = False
) -> CaseReport:
    """Read a case's files once, each, and report everything; never raises for a bad file.

    Args:
        case: {"name", "image": path or [a path per channel], "label": path}.
        labels: name -> value of the foreground labels.
        ignore_label: value of voxels that nobody labelled, or None.
        grey: images of one channel are declared: a colour picture with three equal channels has one.
    """
    paths = image_files(case["image"])
    report = CaseReport(case["name"], paths[0])
    images = [_read(path, report, grey=grey) for path in paths]
    label = _read(case["label"], report, label=True)
    whole = _join(paths, images, report) if all(images) else None
    if whole:
        _check_image(whole, report)
    if label:
        _check_label(label, case["label"], labels, ignore_label, report)
    if whole and label:
        _check_grids(whole, label, case["label"], report)
    if whole and label and not report.errors:
        _gather_facts(whole.array, label.array[0], sorted(labels.values()), report)
    return report


def _read(path: str, report: CaseReport, label: bool = False, grey: bool = False) -> RawImage | None:
    try:
        image = read_raw(path, label, grey)
    except UserError as error:
        report.errors.append(Problem(path, str(error).removeprefix(f"{path} ")))
        return None
    if image.warning:
        report.warnings.append(Problem(path, image.warning))
    if image.affine is not None and (problem := affine_problem(image.affine)):
        report.errors.append(Problem(path, problem))
        return None
    return image


def _join(paths: Sequence[str], images: Sequence[RawImage], report: CaseReport) -> RawImage | None:
    """One image of all channels, and what it is in the report."""
    first = images[0]
    report.shape, report.affine, report.dtype = first.array.shape[1:], first.affine, str(first.array.dtype)
    report.channels = sum(len(image.array) for image in images)
    report.digest = _digest([image.array for image in images])
    conflicts = channel_conflicts(paths, images)
    report.errors += [Problem(*conflict) for conflict in conflicts]
    if conflicts:
        return None
    return first if len(images) == 1 else RawImage(np.concatenate([image.array for image in images]), first.affine)


def _check_image(image: RawImage, report: CaseReport) -> None:
    array = image.array
    if array.ndim - 1 not in (2, 3):
        report.errors.append(Problem(report.file, f"has {array.ndim - 1} spatial dimensions, 2 or 3 can be used"))
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in _parts(array)):
        report.errors.append(Problem(report.file, "holds NaN or infinite values"))
    elif array.dtype.kind == "f" and any(np.abs(part).max() > LARGEST_FLOAT for part in _parts(array)):
        report.errors.append(Problem(report.file, f"holds values beyond {LARGEST_FLOAT:.3g}, float32's largest"))
    else:
        constant = [i for i, channel in enumerate(array) if channel.size == 0 or channel.min() == channel.max()]
        if len(constant) == len(array):
            report.errors.append(Problem(report.file, "is constant (every voxel is the same)"))
        elif constant:
            shown = ", ".join(map(str, constant))
            report.warnings.append(Problem(report.file, f"is constant in channel {shown} (counted from 0)"))
    if image.affine is not None and array.ndim == 4 and is_oblique(image.affine):
        report.warnings.append(Problem(report.file, "has a rotated affine (axes oblique to the body's): it is kept"))


def _check_label(
    label: RawImage, path: str, labels: Mapping[str, int], ignore_label: int | None, report: CaseReport
) -> None:
    if len(label.array) != 1:
        report.errors.append(Problem(path, f"has {len(label.array)} channels, a label map has one"))
        return
    declared = {0, *labels.values()} | ({ignore_label} - {None})
    counts = _count_values(label.array)
    if len(counts) > MOST_VALUES:
        report.errors.append(Problem(path, f"holds over {MOST_VALUES:,} different values: it is no label map"))
        return
    undeclared = sorted(value for value in counts if value not in declared)
    if undeclared:
        number = sum(counts[value] for value in undeclared)
        message = f"holds the label value(s) {listed(undeclared)} in {number} voxel(s); declared are {sorted(declared)}"
        report.errors.append(Problem(path, message + undeclared_hint(undeclared, path)))
        return
    report.values = {int(value): count for value, count in counts.items()}
    if not report.values.keys() & set(labels.values()):
        report.warnings.append(Problem(path, "holds no foreground"))


def _check_grids(image: RawImage, label: RawImage, path: str, report: CaseReport) -> None:
    shape, label_shape = image.array.shape[1:], label.array.shape[1:]
    if shape != label_shape:
        sizes = f"is {tuple(label_shape)} but its image {report.file} is {tuple(shape)}: they must have the same size"
        report.errors.append(Problem(path, sizes))
    elif conflict := grid_conflict(label.affine, image.affine):
        hint = "if the voxels do belong together, copy the image's header to the label"
        grid = f"does not lie on the grid of its image {report.file} ({conflict}): {hint}"
        report.errors.append(Problem(path, grid))
    elif displacement(label.affine, image.affine, shape) > 0.1:
        moved = "has another position or rotation than its image in the header: taken voxel by voxel"
        report.warnings.append(Problem(path, moved))


def _gather_facts(image: np.ndarray, label: np.ndarray, values: Sequence[int], report: CaseReport) -> None:
    report.crop = _nonzero_box(image)
    box = tuple(slice(*ends) for ends in report.crop)
    report.intensity = [_statistics(channel[box]) for channel in image]
    classes = _class_indices(label, values, max(report.values))
    components = _count_components(classes)
    report.components = {value: components[i + 1] for i, value in enumerate(values) if i + 1 in components}
    foreground = np.flatnonzero(classes)
    # With replacement, as nnU-Net: every case weighs the same.
    number = SAMPLES if len(foreground) else 0
    drawn = foreground[np.random.default_rng(SEED).integers(0, max(1, len(foreground)), number)]
    report.samples = image[(slice(None), *np.unravel_index(drawn, label.shape))].astype(np.float32)


def _nonzero_box(image: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) per axis of the voxels that are not zero in every channel."""
    nonzero = np.logical_or.reduce([channel != 0 for channel in image])
    box = []
    for axis in range(nonzero.ndim):
        others = tuple(other for other in range(nonzero.ndim) if other != axis)
        where = np.flatnonzero(nonzero.any(axis=others))
        box.append((int(where[0]), int(where[-1]) + 1))
    return box


def _statistics(channel: np.ndarray) -> dict[str, float]:
    """In float64, chunk by chunk: a whole CT in float64 would be 0.4 GB."""
    parts = _parts(channel)
    mean = sum(part.sum(dtype=np.float64) for part in parts) / channel.size
    variance = sum(np.square(part.astype(np.float64) - mean).sum() for part in parts) / channel.size
    ends = {"min": float(channel.min()), "max": float(channel.max())}
    return ends | {"mean": float(mean), "std": float(np.sqrt(variance))}


def _count_values(label: np.ndarray) -> dict[float, int]:
    """Value -> number of voxels; not all of them where there are more than MOST_VALUES."""
    counts: dict[float, int] = {}
    for part in _parts(label):
        values, numbers = np.unique(part, return_counts=True, equal_nan=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
        if len(counts) > MOST_VALUES:  # an image, whose values would fill the memory
            break
    return counts


def _class_indices(label: np.ndarray, values: Sequence[int], largest: int) -> np.ndarray:
    """1..n for the n values in the label map, 0 for everything else."""
    table = np.zeros(max(largest, *values) + 1, np.min_scalar_type(len(values)))
    table[list(values)] = range(1, len(values) + 1)
    return table[label.astype(np.min_scalar_type(largest))]


def _count_components(classes: np.ndarray) -> dict[int, int]:
    """Components of each class that is there; voxels that touch, be it at a corner, are one."""
    corners = np.ones([3] * classes.ndim)
    boxes = enumerate(ndimage.find_objects(classes), start=1)
    return {i: int(ndimage.label(classes[box] == i, corners)[1]) for i, box in boxes if box is not None}


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(str((array.dtype, array.shape)).encode())
        for part in _parts(array):
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
    return digest.hexdigest()


def _parts(array: np.ndarray) -> list[np.ndarray]:
    """The voxels in the order in which they lie in memory, as views of at most CHUNK where that is possible."""
    flat = array.ravel(order="K")
    return [flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK)]
