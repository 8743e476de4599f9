"""Reads what is worth keeping of an nnU-Net v2 plan: spacing, patch, batch and normalisation.

nnU-Net counts axes from the file's last one (z, y, x) and may turn them once more (transpose_forward), so that
slices come first; here axes are R, A, S, and a picture's rows and columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..common.errors import UserError

__all__ = ["NnUnetPlan", "dataset_name", "read_nnunet_plan"]

RAS_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
SCHEMES = {
    "ZScoreNormalization": "zscore",
    "NoNormalization": "none",
    "RGBTo01Normalization": "rgb",
    "RescaleTo01Normalization": "zscore",  # the network has no such scheme; both are per image and linear
}


class NnUnetPlan(NamedTuple):
    """One configuration of a plan, in this bundle's axis order.

    ``spacing`` has one entry an image axis (None for pictures), ``patch_size`` one a network axis.
    """

    configuration: str
    spacing: list[float] | None
    slice_axis: int | None
    patch_size: list[int]
    batch_size: int
    normalization: list[Any]


def read_nnunet_plan(path: Path, image_dims: int, spatial_dims: int, orientation: str | None = None) -> NnUnetPlan:
    """Read the configuration 3d_fullres, or 2d for a 2D network.

    Args:
        path: nnU-Net v2's plans.json.
        image_dims: 2 for pictures, 3 for volumes.
        spatial_dims: of the network.
        orientation: axes of the image files before they were turned to RAS, such as "LPS"; tells which of the
            file's axes became which. None takes them to be in the order R, A, S already.

    Raises:
        UserError: the file is missing or no such plan, or lacks the configuration.
    """
    plans = _read(path)
    name = "3d_fullres" if spatial_dims == 3 else "2d"
    try:
        configuration = _configuration(plans, name, path)
        return _translate(plans, configuration, name, image_dims, orientation)
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path}: the configuration {name} is not one of an nnU-Net v2 plan ({type(error).__name__}: {error})"
        ) from error


def dataset_name(path: Path) -> str:
    """The data set that a plan was made for, such as Dataset004_Hippocampus.

    Raises:
        UserError: the file is missing or no such plan.
    """
    name = _read(path).get("dataset_name")
    if not isinstance(name, str):
        raise UserError(f"{path} names no data set (dataset_name): give its folder with --dataset_dir")
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"the nnU-Net plan {path} does not exist: give its plans.json with --from_nnunet") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict):
        raise UserError(f'{path} is no nnU-Net v2 plan: it has no "configurations"')
    return plans


def _configuration(plans: Mapping[str, Any], name: str, path: Path, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with what it inherits; ``heirs`` are those that inherit from it."""
    configurations = plans["configurations"]
    if name not in configurations:
        hint = "try --dimensions 2" if name == "3d_fullres" and "2d" in configurations else "plan it with nnU-Net first"
        raise UserError(f"{path} has no configuration {name} (only {', '.join(configurations)}): {hint}")
    if name in heirs:
        raise UserError(f"{path}: the configurations {', '.join(heirs)} inherit from each other in a circle: mend it")
    parent = configurations[name].get("inherits_from")
    inherited = _configuration(plans, parent, path, (*heirs, name)) if parent else {}
    return inherited | configurations[name]


def _translate(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], name: str, image_dims: int, orientation: str | None
) -> NnUnetPlan:
    axes = _our_axes(plans.get("transpose_forward") or [0, 1, 2], image_dims, orientation)
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    through_slices = image_dims == 3 and len(patch) == 2
    if through_slices:
        spacing = [plans["original_median_spacing_after_transp"][0], *spacing]
    network_axes = axes[-len(patch) :]
    return NnUnetPlan(
        configuration=name,
        spacing=_sort_by(axes, map(float, spacing)) if image_dims == 3 else None,
        slice_axis=axes[0] if through_slices else None,
        patch_size=_sort_by(network_axes, map(int, patch)),
        batch_size=int(configuration["batch_size"]),
        normalization=_normalization(plans, configuration),
    )


def _our_axes(transpose_forward: Sequence[int], image_dims: int, orientation: str | None) -> list[int]:
    """For each axis of nnU-Net's arrays, which axis it is here; a picture's first one, its single slice, is -1."""
    if image_dims == 2:
        return [axis - 1 for axis in transpose_forward]
    file_axes = [2 - axis for axis in transpose_forward]
    return [RAS_AXIS[orientation[axis]] if orientation else axis for axis in file_axes]


def _sort_by(axes: Sequence[int], values: Any) -> list[Any]:
    return [value for _, value in sorted(zip(axes, values, strict=True))]


def _normalization(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[Any]:
    schemes = configuration["normalization_schemes"]
    masks = configuration.get("use_mask_for_norm") or [False] * len(schemes)
    intensities = plans.get("foreground_intensity_properties_per_channel", {})
    found: list[Any] = []
    for channel, (scheme, masked) in enumerate(zip(schemes, masks, strict=True)):
        if scheme == "CTNormalization":
            properties = intensities[str(channel)]
            keys = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
            found.append({"ct": {ours: float(properties[theirs]) for ours, theirs in keys.items()}})
        elif scheme not in SCHEMES:
            raise ValueError(f"unknown normalization scheme {scheme}")
        else:
            ours = SCHEMES[scheme]
            found.append("zscore_nonzero" if ours == "zscore" and masked else ours)
    return found
