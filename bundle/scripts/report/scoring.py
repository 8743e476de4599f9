"""Scores of one case: its prediction and, where there is one, its postprocessed prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..images.task import Task
from ..metrics import case_scores, size_metrics, units
from .loading import Loaded, check_same_grid, load_channels, load_label_map
from .pairing import Case

__all__ = ["CaseResult", "absent_scores", "score_case"]

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class CaseResult:
    """What the report knows of a case besides its pictures.

    Args:
        labels: class -> value; without a task those that occur in the case.
        prediction, postprocessed: class or region -> metric -> value, NaN where it is undefined.
        labelled, predicted: whether the reference and the prediction hold any foreground.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    labels: dict[str, int]
    units: dict[str, str]
    prediction: Scores
    postprocessed: Scores | None
    labelled: bool
    predicted: bool


def score_case(case: Case, task: Task, tolerance: float) -> CaseResult:
    """Load a case's files and score them.

    Args:
        tolerance: of the normalised surface Dice, in mm, or pixels without spacing.

    Raises:
        UserError: a file cannot be read, has unknown values, or lies on another grid.
    """
    prediction = load_label_map(case.prediction, task)
    label = load_label_map(case.label, task) if case.label else None
    cleaned = load_label_map(case.postprocessed, task) if case.postprocessed else None
    image = load_channels(case.images[:1]) if case.images else None
    for other in (label, cleaned, image):
        if other is not None:
            check_same_grid(prediction, other)
    if task.image_dims == 2:
        prediction, label, cleaned = (m and m.planar() for m in (prediction, label, cleaned))
    maps = [loaded for loaded in (prediction, label, cleaned) if loaded is not None]
    labels = dict(task.labels) if task.labels else _labels_found(maps)
    metric_units = units(prediction.dims, prediction.spacing)
    if label is None:
        size = size_metrics(prediction.dims, prediction.spacing)[0]
        metric_units = {size: metric_units[size]}
    return CaseResult(
        name=case.name,
        shape=prediction.array.shape,
        spacing=prediction.spacing,
        labels=labels,
        units=metric_units,
        prediction=_scores(prediction, label, labels, task, tolerance),
        postprocessed=_scores(cleaned, label, labels, task, tolerance) if cleaned else None,
        labelled=label is not None and _has_foreground(label, labels),
        predicted=_has_foreground(prediction, labels),
    )


def absent_scores(result: CaseResult) -> dict[str, float]:
    """The scores of a class that is in neither map, in the metrics of ``result``."""
    dims = len(result.shape)
    scores = case_scores(*[np.zeros((1,) * dims, np.uint8)] * 2, {"absent": 1}, result.spacing)["absent"]
    return {metric: scores[metric] for metric in result.units}


def _scores(predicted: Loaded, label: Loaded | None, labels: dict[str, int], task: Task, tolerance: float) -> Scores:
    if label is not None:
        spacing, regions, ignore = predicted.spacing, task.regions, task.ignore_label
        return case_scores(predicted.array, label.array, labels, spacing, regions, ignore, tolerance)
    return _sizes(predicted, labels, task)


def _sizes(predicted: Loaded, labels: dict[str, int], task: Task) -> Scores:
    """The sizes alone, all that can be said without a reference."""
    size = size_metrics(predicted.dims, predicted.spacing)[0]
    voxel = 1.0 if predicted.spacing is None else math.prod(predicted.spacing) / (1000 if predicted.dims == 3 else 1)
    counts = {name: int((predicted.array == value).sum()) for name, value in labels.items()}
    counts |= {region: sum(counts[name] for name in names) for region, names in task.regions.items()}
    return {name: {size: count * voxel} for name, count in counts.items()}


def _labels_found(maps: list[Loaded]) -> dict[str, int]:
    values = sorted({int(value) for loaded in maps for value in np.unique(loaded.array)} - {0})
    return {f"label {value}": value for value in values}


def _has_foreground(label_map: Loaded, labels: dict[str, int]) -> bool:
    return bool(np.isin(label_map.array, list(labels.values())).any())
