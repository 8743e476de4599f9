"""Small fingerprints for the tests of planning, as fingerprint.py writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["STATISTICS", "fingerprint", "nnunet_plan"]

STATISTICS = {
    "mean": 100.0,
    "std": 25.0,
    "median": 99.0,
    "min": -200.0,
    "max": 900.0,
    "p00_5": -60.0,
    "p99_5": 240.0,
}


def fingerprint(
    shape: Sequence[int] = (64, 64, 32),
    spacing: Sequence[float] | None = (1.0, 1.0, 1.0),
    cases: int = 10,
    channels: Sequence[str] = ("MRI",),
    **changes: Any,
) -> dict[str, Any]:
    """A data set of equal cases; ``changes`` replace entries."""
    case = {
        "shape": list(shape),
        "cropped_shape": list(shape),
        "spacing": None if spacing is None else list(spacing),
        "orientation": None if spacing is None else "LPS",
        "dtype": "uint8" if spacing is None else "int16",
        "voxels": {"organ": 1000},
        "components": {"organ": 1},
    }
    return {
        "name": "example",
        "channels": list(channels),
        "labels": {"organ": 1},
        "ignore_label": None,
        "regions": {},
        "image_dims": len(shape),
        "cases": cases,
        "per_case": [case | {"name": f"case_{i}"} for i in range(cases)],
        "median_shape": list(shape),
        "median_spacing": None if spacing is None else list(spacing),
        "cropped_fraction": 1.0,
        "intensity": [STATISTICS for _ in channels],
    } | changes


def nnunet_plan(file: Path, **changes: Any) -> Path:
    """Write an nnU-Net v2 plan of a thick-sliced CT (5 x 0.8 x 0.7 mm in z, y, x)."""
    full = {
        "patch_size": [20, 250, 192],
        "spacing": [5.0, 0.8, 0.7],
        "batch_size": 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
    }
    flat = full | {"patch_size": [510, 448], "spacing": [0.8, 0.7], "batch_size": 12}
    properties = {"percentile_00_5": -60.0, "percentile_99_5": 240.0, "mean": 100.0, "std": 25.0, "median": 99.0}
    plan = {
        "dataset_name": "Dataset042_Example",
        "transpose_forward": [0, 1, 2],
        "original_median_spacing_after_transp": [5.0, 0.8, 0.7],
        "configurations": {"2d": flat, "3d_fullres": full},
        "foreground_intensity_properties_per_channel": {"0": properties},
    }
    file.write_text(json.dumps(plan | changes))
    return file
