"""The network of a checkpoint, and what its images need, from the configs that inference runs with."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from ..common import BUNDLE_ROOT
from ..common.command_line import check_ids, option_values, or_none
from ..common.errors import UserError
from ..data.transforms import Preparation
from ..engines.ensemble import checkpoint_paths
from ..engines.settings_check import check_settings
from ..engines.weights import weights_digest
from ..networks import LightMUNet

__all__ = ["Model", "read_model"]

logger = logging.getLogger("lightm_unet")


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
    trained, strides = config.get_parsed_content("trained"), or_none(config.get_parsed_content("strides"))
    preparation, patch = config.get_parsed_content("preparation"), trained["patch_size"]
    check_settings(patch_size=patch, spatial_dims=preparation.spatial_dims, strides=strides)
    config.get_parsed_content("load_weights").load()
    network = config.get_parsed_content("network_def")
    _warn_of_columns(preparation)
    facts = {
        "name": config.get_parsed_content("name"),
        **_facts(preparation, trained),
        "overlap": config.get_parsed_content("overlap"),
        "weights": Path(paths[0]).name,
        "weights_digest": weights_digest(paths[0]),
    }
    return Model(network, tuple(patch), _longest_scan(patch, strides, network), facts)


def _read_configs(files: Sequence[str], checkpoint: str, overrides: Sequence[str]) -> ConfigParser:
    check_ids(["run", "inference", "--config_file", str(list(files)), *overrides])
    config = ConfigParser()
    config.read_config(list(files))
    typed = {name: DefaultParseValue(value) for name, value in option_values(overrides).items()}
    config.update({"bundle_root": str(BUNDLE_ROOT), **typed, "checkpoint": checkpoint})
    return config


def _warn_of_columns(preparation: Preparation) -> None:
    if preparation.image_dims == 2 and not preparation.rows_first:
        logger.warning(
            "this task was planned (without rows_first) when 2D NIfTI, NRRD and MetaImage files came with rows and "
            "columns exchanged: if the network learnt from such files, it takes (columns, rows)"
        )


def _longest_scan(patch_size: Sequence[int], strides: Sequence[Sequence[int]] | None, network: LightMUNet) -> int:
    """The finest stage of VSS layers has it."""
    strides = strides or [[2] * len(patch_size)] * network.conv_stages
    return math.prod(patch_size) // math.prod(map(math.prod, strides[: network.conv_stages]))


def _facts(preparation: Preparation, trained: Mapping[str, Any]) -> dict[str, Any]:
    """How images are prepared, and go through the network in windows."""
    patch, slice_axis = list(trained["patch_size"]), preparation.slice_axis
    labels = dict(sorted(preparation.labels.items(), key=lambda item: item[1]))
    return {
        "image_dims": preparation.image_dims,
        "in_channels": preparation.in_channels,
        "labels": labels,
        "label_values": [0, *labels.values()],
        "orientation": "RAS" if preparation.image_dims == 3 else None,
        "crop_nonzero": preparation.crop_nonzero,
        "normalization": preparation.normalization or ["zscore"] * preparation.in_channels,
        "spacing": preparation.spacing,
        "slice_axis": slice_axis,
        "patch_size": patch,
        "window": patch if slice_axis is None else [*patch[:slice_axis], 1, *patch[slice_axis:]],
        "mirror_axes": list(trained["mirror_axes"]),
    }
