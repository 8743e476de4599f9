"""What a plan says of the images: dimensions, slices, orientation, spacing and intensities (nnU-Net's rules)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..images.geometry import times
from .nnunet_plans import NnUnetPlan
from .plan import Plan, Row, Wishes
from .spacing import rounded, target_spacing

__all__ = ["choose_dimensions", "choose_normalization", "choose_slice_axis", "choose_spacing", "describe_orientation"]


def choose_dimensions(plan: Plan, fingerprint: Mapping[str, Any], wishes: Wishes) -> int:
    pictures, flat = fingerprint["image_dims"] == 2, _flat_axis(fingerprint) is not None
    if wishes.dimensions == 3 and (pictures or flat):
        what = "pictures" if pictures else "volumes of a single slice"
        raise UserError(f"--dimensions 3: the data set {fingerprint['name']} holds {what}; leave the option out")
    if pictures or flat:
        dims, reason = 2, "pictures" if pictures else "volumes of a single slice"
    elif wishes.dimensions == 2:
        dims, reason = 2, "asked for: each slice is segmented by itself"
    else:
        dims, reason = 3, "volumes; --dimensions 2 segments them slice by slice"
    plan.set("spatial_dims", dims, reason)
    return dims


def _flat_axis(fingerprint: Mapping[str, Any]) -> int | None:
    """The axis along which the volumes have one slice, if they have."""
    if fingerprint["image_dims"] == 2:
        return None
    median = np.median([case["shape"] for case in fingerprint["per_case"]], axis=0)
    return int(np.argmin(median)) if median.min() == 1 else None


def choose_slice_axis(plan: Plan, fingerprint: Mapping[str, Any], imported: NnUnetPlan | None) -> None:
    plan.overlay["slice_axis"] = None
    if fingerprint["image_dims"] == 2:  # plans without it are of a time when some formats came as (columns, rows)
        plan.overlay["rows_first"] = True
    if plan.overlay["spatial_dims"] == 3 or fingerprint["image_dims"] == 2:
        return
    flat = _flat_axis(fingerprint)
    if flat is not None:
        axis, reason = flat, "the axis of the single slice"
    elif imported is not None:
        axis, reason = imported.slice_axis, "as in the nnU-Net plan"
    else:
        # Of equals the last one: axial slices.
        spacing = fingerprint["median_spacing"] or [1.0, 1.0, 1.0]
        axis = max(range(3), key=lambda axis: (spacing[axis], axis))
        reason = f"the network walks along the coarsest axis ({spacing[axis]:g} mm)"
    plan.set("slice_axis", axis, f"{reason}; axes are 0 left-right, 1 back-front, 2 feet-head")


def describe_orientation(plan: Plan, fingerprint: Mapping[str, Any]) -> None:
    if fingerprint["image_dims"] == 2:
        return
    found = Counter(case.get("orientation") or "unknown" for case in fingerprint["per_case"])
    files = ", ".join(f"{code} ({count})" for code, count in found.most_common(4))
    plan.rows.append(Row("orientation", "RAS", f"volumes are turned to RAS, predictions back; the files are {files}"))


def choose_spacing(plan: Plan, fingerprint: Mapping[str, Any], cropped: bool, imported: NnUnetPlan | None) -> None:
    cases = [case for case in fingerprint["per_case"] if case["spacing"] is not None]
    axis = plan.overlay["slice_axis"]
    if len(cases) < fingerprint["cases"]:
        missing = "pictures keep their pixels" if fingerprint["image_dims"] == 2 else "not every case has a spacing"
        plan.set("spacing", None, missing)
        return
    if imported is not None and imported.spacing is not None:
        spacing, reason = rounded(imported.spacing), "from the nnU-Net plan"
    else:
        shapes = [case["cropped_shape" if cropped else "shape"] for case in cases]
        spacing, thick = target_spacing([case["spacing"] for case in cases], shapes)
        reason = f"median of {_range(cases)}"
        if thick is not None and axis is None:
            reason += f"; along axis {thick}, where slices are thick, the 10th percentile"
    if axis is not None:
        spacing[axis], reason = None, f"{reason}; slices stay where they are"
    plan.set("spacing", spacing, reason, times(spacing, "keep") + " mm")


def _range(cases: Sequence[Mapping[str, Any]]) -> str:
    spacings = np.array([case["spacing"] for case in cases])
    low, high = spacings.min(axis=0), spacings.max(axis=0)
    if np.allclose(low, high, rtol=1e-3):
        return f"{len(cases)} equal ones" if len(cases) > 1 else "one case"
    return f"{times(low)} to {times(high)}"


def choose_normalization(
    plan: Plan, fingerprint: Mapping[str, Any], cropped: bool, imported: NnUnetPlan | None
) -> None:
    plan.overlay["normalization"] = schemes = []
    for index, channel in enumerate(fingerprint["channels"]):
        if imported is not None:
            scheme, reason = imported.normalization[index], "from the nnU-Net plan"
        else:
            scheme, reason = _scheme(fingerprint, index, cropped)
        schemes.append(scheme)
        plan.rows.append(Row(f"normalization of {channel}", _scheme_shown(scheme), reason))


def _scheme(fingerprint: Mapping[str, Any], index: int, cropped: bool) -> tuple[Any, str]:
    """The normalisation of a channel, by its name as in nnU-Net."""
    name = fingerprint["channels"][index].lower()
    if name == "ct":
        stats = fingerprint["intensity"][index]
        keys = {"lower": "p00_5", "upper": "p99_5", "mean": "mean", "std": "std"}
        numbers = {ours: round(float(stats[theirs]), 4) for ours, theirs in keys.items()}
        if numbers["lower"] >= numbers["upper"] or numbers["std"] <= 0:
            return (
                "zscore",
                "image by image: the foreground has one intensity, to which a CT cannot be clipped",
            )
        return {"ct": numbers}, "the channel is called CT: clipped and scaled by the foreground of all cases"
    if name in ("nonorm", "none"):
        return "none", f"the channel is called {fingerprint['channels'][index]}"
    if name == "rgb_to_0_1":
        return "rgb", "the channel is called rgb_to_0_1: divided by 255"
    if _is_rgb(fingerprint):
        return "rgb", "colour picture of 8 bits: divided by 255"
    if cropped:
        return "zscore_nonzero", "image by image, inside the nonzero voxels, which are a small part"
    return "zscore", "image by image: only CT has a scale of its own"


def _is_rgb(fingerprint: Mapping[str, Any]) -> bool:
    dtypes = {case["dtype"] for case in fingerprint["per_case"]}
    return fingerprint["image_dims"] == 2 and len(fingerprint["channels"]) == 3 and dtypes == {"uint8"}


def _scheme_shown(scheme: str | Mapping[str, Mapping[str, float]]) -> str:
    if isinstance(scheme, str):
        return scheme
    numbers = scheme["ct"]
    return f"ct {numbers['lower']:g} to {numbers['upper']:g}, mean {numbers['mean']:.4g}, std {numbers['std']:.4g}"
