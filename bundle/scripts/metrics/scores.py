"""Scores of one predicted label map against its reference, per class and per region.

With P the voxels of the prediction, R those of the reference, and d the distances from each surface voxel of one to
the nearest surface voxel of the other (surface.py):

  dice       2 |P and R| / (|P| + |R|)
  iou        |P and R| / |P or R|
  precision  |P and R| / |P|
  recall     |P and R| / |R|
  nsd        normalised surface Dice: the share of both surfaces' voxels with d <= tolerance (voxels are counted, as
             MONAI does by default, and not weighted by their area)
  hd95       the larger of the two directed 95th percentiles of d (MONAI's definition)
  assd       mean of d over both surfaces' voxels

Distances are in mm, or in pixels where the image has no spacing. NaN means undefined: all of these where the class
is in neither map; precision where it was not predicted, recall where there is nothing to find, hd95 and assd where one
of the two surfaces is missing. A class that is in one map only has dice, iou and nsd 0.

Sizes (see size_metrics) are those of the prediction and of the reference, the error (prediction - reference) and the
error in percent of the reference, undefined where that is empty.

Ignored voxels count nowhere: they are in no mask, and a face towards one is no surface.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.ndimage import find_objects

from .slabs import is_among
from .surface import surface_distances

__all__ = [
    "DEFAULT_TOLERANCE",
    "METRICS",
    "case_scores",
    "class_groups",
    "class_indices",
    "size_metrics",
    "units",
    "voxel_measure",
]

METRICS = ("dice", "iou", "precision", "recall", "nsd", "hd95", "assd")
# mm, or pixels without spacing: about the voxel size of a good scan, and MSD's for the hippocampus. Large organs are
# usually judged at 2 to 7 mm.
DEFAULT_TOLERANCE = 1.0
BLOCK = 1 << 22  # voxels that are counted at a time, which bounds the memory

Array = np.ndarray | torch.Tensor


def size_metrics(dims: int, spacing: Sequence[float] | None) -> tuple[str, str, str, str]:
    """Keys of the prediction's size, the reference's size, the error and the error in percent.

    They name their unit: volume_ml in 3D and area_mm2 in 2D, volume_voxels and area_px without spacing.
    """
    kind = "volume" if dims == 3 else "area"
    _, unit = voxel_measure(dims, spacing)
    return f"{kind}_{unit}", f"reference_{kind}_{unit}", f"{kind}_error_{unit}", f"{kind}_error_percent"


def voxel_measure(dims: int, spacing: Sequence[float] | None) -> tuple[float, str]:
    """The size of one voxel and its unit: ml in 3D, mm2 in 2D; 1 and voxels or px without spacing."""
    if spacing is None:
        return 1.0, "voxels" if dims == 3 else "px"
    return (math.prod(spacing) / 1000, "ml") if dims == 3 else (math.prod(spacing), "mm2")


def units(dims: int, spacing: Sequence[float] | None) -> dict[str, str]:
    """Every metric that :func:`case_scores` returns -> its unit, "" for a ratio between 0 and 1."""
    length = "px" if spacing is None else "mm"
    size, *others, percent = size_metrics(dims, spacing)
    return {
        **dict.fromkeys(METRICS, ""),
        **dict.fromkeys(("hd95", "assd"), length),
        **dict.fromkeys((size, *others), size.split("_")[-1]),
        percent: "%",
    }


def case_scores(
    prediction: Array,
    label: Array,
    labels: Mapping[str, int],
    spacing: Sequence[float] | None = None,
    regions: Mapping[str, Sequence[str]] | None = None,
    ignore_label: int | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> dict[str, dict[str, float]]:
    """Score each class and region of one case.

    Args:
        prediction, label: label maps of the same shape (*spatial) on one grid, integers of any type. Values that
            ``labels`` does not name count as background.
        labels: name -> value of the foreground classes.
        spacing: voxel size along each axis in mm; None: there is none, so lengths are pixels.
        regions: name -> names of the labels whose union it is; scored like classes.
        ignore_label: the value in ``label`` of voxels that are left out.
        tolerance: of nsd, in mm (pixels without spacing).

    Returns:
        name of the class or region -> metric -> value, with the metrics METRICS and size_metrics(dims, spacing).

    Raises:
        ValueError: the shapes differ, or the spacing has another length.
    """
    predicted, expected = np.asarray(prediction), np.asarray(label)
    if predicted.shape != expected.shape:
        raise ValueError(f"the prediction is {predicted.shape}, the label {expected.shape}")
    if spacing is not None and len(spacing) != predicted.ndim:
        raise ValueError(f"{len(spacing)} spacings for {predicted.ndim} axes")
    ignored = expected == ignore_label if ignore_label is not None and (expected == ignore_label).any() else None
    predicted, expected = class_indices(predicted, labels), class_indices(expected, labels)
    if ignored is not None:
        predicted[ignored] = expected[ignored] = 0
    counts = _confusion(predicted, expected, len(labels) + 1)
    boxes = _boxes(predicted, expected)
    result = {}
    for name, members in class_groups(labels, regions).items():
        scores = _overlap(counts, members)
        scores |= _surface_scores(predicted, expected, members, boxes, spacing, ignored, tolerance)
        sizes = _sizes(counts, members, predicted.ndim, spacing)
        result[name] = {metric: scores[metric] for metric in METRICS} | sizes
    return result


def class_groups(labels: Mapping[str, int], regions: Mapping[str, Sequence[str]] | None) -> dict[str, np.ndarray]:
    """Class or region -> which class indices (0 = background) belong to it, as booleans."""
    index = {name: i for i, name in enumerate(labels, 1)}
    unions = {name: [name] for name in labels} | {name: list(names) for name, names in (regions or {}).items()}
    groups = {}
    for name, names in unions.items():
        groups[name] = np.zeros(len(labels) + 1, bool)
        groups[name][[index[member] for member in names]] = True
    return groups


def class_indices(label_map: np.ndarray, labels: Mapping[str, int]) -> np.ndarray:
    """0 for the background and values that ``labels`` does not name, else 1, 2, … in the order of ``labels``."""
    highest = max(labels.values(), default=0)
    table = np.zeros(highest + 2, np.uint8 if len(labels) < 256 else np.uint16)
    for index, value in enumerate(labels.values(), 1):
        table[value] = index
    slices = label_map[None] if label_map.ndim == 1 else label_map
    indices = np.empty(slices.shape, table.dtype)
    for place, part in enumerate(slices):  # an index takes eight times the memory of a label
        indices[place] = table[part.clip(0, highest + 1).astype(np.intp)]
    return indices.reshape(label_map.shape)


def _confusion(predicted: np.ndarray, expected: np.ndarray, classes: int) -> np.ndarray:
    """Voxels of each pair (predicted class, expected class)."""
    counts = np.zeros(classes * classes, np.int64)
    predicted, expected = predicted.ravel(), expected.ravel()
    for start in range(0, predicted.size, BLOCK):
        block = slice(start, start + BLOCK)
        pairs = predicted[block].astype(np.int64) * classes + expected[block]
        counts += np.bincount(pairs, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _overlap(counts: np.ndarray, members: np.ndarray) -> dict[str, float]:
    shared = counts[np.ix_(members, members)].sum()
    predicted, expected = counts[members].sum(), counts[:, members].sum()
    return {
        "dice": _ratio(2 * shared, predicted + expected),
        "iou": _ratio(shared, predicted + expected - shared),
        "precision": _ratio(shared, predicted),
        "recall": _ratio(shared, expected),
    }


def _sizes(counts: np.ndarray, members: np.ndarray, dims: int, spacing: Sequence[float] | None) -> dict[str, float]:
    voxel, _ = voxel_measure(dims, spacing)
    predicted, expected = float(counts[members].sum() * voxel), float(counts[:, members].sum() * voxel)
    error = predicted - expected
    values = (predicted, expected, error, _ratio(100 * error, expected))
    return dict(zip(size_metrics(dims, spacing), values))


def _boxes(predicted: np.ndarray, expected: np.ndarray) -> list[np.ndarray | None]:
    """Class index - 1 -> first and last + 1 voxel (2, dims) of the class in both maps together."""
    found = [find_objects(label_map) for label_map in (predicted, expected)]
    boxes = []
    for index in range(max(map(len, found))):
        parts = [objects[index] for objects in found if index < len(objects) and objects[index]]
        edges = np.array([[[s.start for s in part], [s.stop for s in part]] for part in parts])
        boxes.append(np.stack([edges[:, 0].min(0), edges[:, 1].max(0)]) if parts else None)
    return boxes


def _surface_scores(
    predicted: np.ndarray,
    expected: np.ndarray,
    members: np.ndarray,
    boxes: Sequence[np.ndarray | None],
    spacing: Sequence[float] | None,
    ignored: np.ndarray | None,
    tolerance: float,
) -> dict[str, float]:
    """nsd, hd95 and assd, on the smallest box around the class in both maps."""
    own = [box for box, member in zip(boxes, members[1:]) if member and box is not None]
    if not own:
        return dict.fromkeys(("nsd", "hd95", "assd"), math.nan)
    # One voxel more shows which faces look at ignored voxels; an axis with a single voxel has no surface of its own.
    first, last = np.min(own, 0)[0] - 1, np.max(own, 0)[1] + 1
    crop = tuple(
        0 if size == 1 else slice(max(a, 0), b) for a, b, size in zip(first, last, predicted.shape, strict=True)
    )
    scale = [s for s, size in zip(spacing or [1.0] * predicted.ndim, predicted.shape) if size > 1]
    masks = (is_among(indices[crop], np.flatnonzero(members)) for indices in (predicted, expected))
    distances = surface_distances(*masks, scale, None if ignored is None else ignored[crop])
    return _distance_scores(*distances, tolerance)


def _distance_scores(predicted: np.ndarray, expected: np.ndarray, tolerance: float) -> dict[str, float]:
    both = np.concatenate([predicted, expected])
    nsd = _ratio((both <= tolerance * (1 + 1e-6)).sum(), len(both))  # 3 x 0.1 mm is within 0.3 mm
    if not len(predicted) or not len(expected):
        return {"nsd": nsd, "hd95": math.nan, "assd": math.nan}
    hd95 = max(np.percentile(predicted, 95), np.percentile(expected, 95))
    return {"nsd": nsd, "hd95": float(hd95), "assd": float(both.mean())}


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else math.nan
