"""The network of a checkpoint, and what its images need, from the configs that inference runs with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from ..common import BUNDLE_ROOT
from ..common.command_line import as_flag, check_ids, option_values, or_none
from ..common.errors import UserError
from ..data.transforms import check_patch_size, image_dims
from ..engines.checkpoints import check_preparation, load_weights, weights_digest
from ..engines.ensemble import checkpoint_paths
from ..networks import LightMUNet

__all__ = ["Model", "read_model"]


class Model(NamedTuple):
    """A network and its images.

    Attributes:
        network: with its weights.
        patch_size: of the windows that it gets.
        longest_scan: tokens of it, which a runtime walks through one after the other.
        facts: what the JSON beside the exported network says of its images (bundle/docs/onnx.md), but the files'.
    """

    network: LightMUNet
    patch_size: tuple[int, ...]
    longest_scan: int
    facts: dict[str, Any]


def read_model(files: Sequence[str], checkpoint: str, overrides: Sequence[str] = ()) -> Model:
    """Build and load the network as inference would.

    Args:
        files: configs/inference.json and the task's overlay.
        checkpoint: its weights.
        overrides: ``--id value`` of the configs.

    Raises:
        UserError: a config or a setting is wrong, or the weights are missing, damaged, or of another network.
    """
    paths = checkpoint_paths(checkpoint)
    if len(paths) > 1:
        raise UserError(f"--checkpoint names {len(paths)} files: export one after the other, and average their logits")
    config = _read_configs(files, paths[0], overrides)
    config.get_parsed_content("check_settings")
    settings = _settings(config)
    check_patch_size(settings["patch_size"], settings["spatial_dims"], settings["strides"])
    network = config.get_parsed_content("network_def")
    load_weights(network, paths[0])
    check_preparation(paths[0], settings)
    digest = {"weights": Path(paths[0]).name, "weights_digest": weights_digest(paths[0])}
    patch = tuple(settings["patch_size"])
    return Model(network, patch, _longest_scan(patch, settings["strides"], network), _facts(settings) | digest)


def _read_configs(files: Sequence[str], checkpoint: str, overrides: Sequence[str]) -> ConfigParser:
    check_ids(["run", "inference", "--config_file", str(list(files)), *overrides])
    config = ConfigParser()
    config.read_config(list(files))
    typed = {name: DefaultParseValue(value) for name, value in option_values(overrides).items()}
    config.update({"bundle_root": str(BUNDLE_ROOT), **typed, "checkpoint": checkpoint})
    return config


def _settings(config: ConfigParser) -> dict[str, Any]:
    """The task's settings by their names, as inference takes them: patch_size and mirror_axes from the training."""
    names = ("name", "spatial_dims", "slice_axis", "rows_first", "in_channels", "labels", "spacing", "normalization")
    settings = {name: config.get_parsed_content(name) for name in (*names, "crop_nonzero", "strides", "overlap")}
    trained = {"patch_size": "window_size", "mirror_axes": "tta_axes"}
    return settings | {name: config.get_parsed_content(id) for name, id in trained.items()}


def _longest_scan(patch_size: Sequence[int], strides: Any, network: LightMUNet) -> int:
    """The finest stage of VSS layers has it."""
    strides = or_none(strides) or [[2] * len(patch_size)] * network.conv_stages
    return math.prod(patch_size) // math.prod(map(math.prod, strides[: network.conv_stages]))


def _facts(settings: dict[str, Any]) -> dict[str, Any]:
    dims = image_dims(settings["spatial_dims"], settings["slice_axis"])
    patch, slice_axis = list(settings["patch_size"]), or_none(settings["slice_axis"])
    window = patch if slice_axis is None else [*patch[:slice_axis], 1, *patch[slice_axis:]]
    labels = dict(sorted(settings["labels"].items(), key=lambda item: item[1]))
    return {
        "name": settings["name"],
        "image_dims": dims,
        "in_channels": settings["in_channels"],
        "labels": labels,
        "label_values": [0, *labels.values()],
        "orientation": "RAS" if dims == 3 else None,
        "crop_nonzero": as_flag(settings["crop_nonzero"], "crop_nonzero"),
        "normalization": or_none(settings["normalization"]) or ["zscore"] * settings["in_channels"],
        "spacing": or_none(settings["spacing"]),
        "slice_axis": slice_axis,
        "patch_size": patch,
        "window": window,
        "overlap": settings["overlap"],
        "mirror_axes": list(settings["mirror_axes"]),
    }
