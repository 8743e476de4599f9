"""The fingerprint: a data set's shapes, spacings, intensities and classes, as a JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..images.formats import planar_axes
from ..images.geometry import orientation, spacing_of, to_ras
from .case_report import CaseReport
from .integrity import DatasetReport

__all__ = ["fingerprint"]


def fingerprint(report: DatasetReport) -> dict[str, Any]:
    """Facts of a data set whose check found no errors; cases with errors are left out.

    Axes of volumes stand in RAS order (after turning to the closest RAS grid), of 2D images as (rows, columns).
    Lengths are in mm, volumes in ml, sizes in voxels.

    Returns:
        {"name", "layout", "channels", "file_ending", "labels", "ignore_label", "regions", "image_dims", "cases",
        "per_case", "median_shape", "median_spacing", "cropped_fraction", "intensity", "classes"}
    """
    description, dims = report.description, report.image_dims
    cases = [case for case in report.cases if case.crop is not None]
    per_case = [_case_facts(case, description.labels, dims) for case in cases]
    spacings = [facts["spacing"] for facts in per_case]
    return {
        "name": description.name,
        "layout": description.layout,
        "channels": report.channel_names,
        "file_ending": description.file_ending,
        "labels": description.labels,
        "ignore_label": description.ignore_label,
        "regions": description.regions,
        "image_dims": dims,
        "cases": len(cases),
        "median_shape": _median([facts["cropped_shape"] for facts in per_case]),
        "median_spacing": None if None in spacings else _median(spacings),
        "cropped_fraction": float(np.median([_cropped_fraction(facts) for facts in per_case])),
        "intensity": _intensities(cases, len(report.channel_names)),
        "classes": _classes(cases, per_case, description.labels),
        "per_case": per_case,
    }


def _case_facts(case: CaseReport, labels: dict[str, int], dims: int) -> dict[str, Any]:
    cropped = [last - first for first, last in case.crop]
    spacing = None if case.affine is None else spacing_of(case.affine, len(case.shape))
    shape, codes = list(case.shape), None
    if dims == 3:
        affine = np.eye(4) if case.affine is None else case.affine
        codes = orientation(affine)
        shape, cropped, spacing = (to_ras(affine, values) for values in (shape, cropped, spacing or [1.0] * 3))
    elif (axes := planar_axes(shape, case.file)) is not None:
        shape, cropped, spacing = (values and [values[axis] for axis in axes] for values in (shape, cropped, spacing))
    return {
        "name": case.name,
        "shape": shape,
        "cropped_shape": cropped,
        "spacing": spacing,
        "orientation": codes,
        "dtype": case.dtype,
        "voxels": {name: case.values.get(value, 0) for name, value in labels.items()},
        "components": {name: case.components.get(value, 0) for name, value in labels.items()},
        "intensity": case.intensity,
    }


def _cropped_fraction(facts: dict[str, Any]) -> float:
    return float(np.prod(facts["cropped_shape"]) / np.prod(facts["shape"]))


def _median(rows: Sequence[Sequence[float]]) -> list[float]:
    return np.median(np.asarray(rows, dtype=float), axis=0).tolist()


def _intensities(cases: Sequence[CaseReport], channels: int) -> list[dict[str, float]]:
    """Per channel, over the foreground voxels drawn from every case."""
    statistics = []
    for channel in range(channels):
        values = np.concatenate([case.samples[channel] for case in cases]).astype(np.float64)
        low, high = np.percentile(values, (0.5, 99.5)).tolist()
        statistics.append(
            {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "median": float(np.median(values)),
                "min": float(values.min()),
                "max": float(values.max()),
                "p00_5": low,
                "p99_5": high,
            }
        )
    return statistics


def _classes(
    cases: Sequence[CaseReport], per_case: Sequence[dict[str, Any]], labels: dict[str, int]
) -> dict[str, dict[str, float | None]]:
    """Means are over the cases that have the class."""
    total = sum(sum(facts["voxels"].values()) for facts in per_case)
    classes = {}
    for name in labels:
        having = [facts for facts in per_case if facts["voxels"][name]]
        voxels = sum(facts["voxels"][name] for facts in having)
        in_ml = having and all(facts["spacing"] and len(facts["spacing"]) == 3 for facts in having)
        volumes = [facts["voxels"][name] * np.prod(facts["spacing"]) / 1000 for facts in having] if in_ml else []
        components = [facts["components"][name] for facts in having]
        classes[name] = {
            "cases": len(having),
            "voxels": voxels,
            "share_of_foreground": voxels / total if total else 0.0,
            "volume_ml_mean": float(np.mean(volumes)) if volumes else None,
            "components_mean": float(np.mean(components)) if components else 0.0,
        }
    return classes
