"""Reads the weights of the authors' LightM-UNet code into our key names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .weight_files import UnsoundWeightsError, read_weight_file

__all__ = ["from_reference", "read_reference_checkpoint"]

# Wrappers that put a word before every key: DataParallel, torch.compile.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
# The authors' names outside the encoder -> ours.
_RENAMES = {
    r"^convInit\.": "stem.",
    r"^up_samples\.(\d+)\.0\.": r"decoder.\1.reduce.",
    r"^up_samples\.(\d+)\.1\.": r"decoder.\1.upsample.",
    r"^up_layers\.(\d+)\.": r"decoder.\1.blocks.",
    r"^conv_final\.": "head.",
}


def read_reference_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of the authors' weights, also a whole nnU-Net checkpoint, without running code from it.

    nnU-Net logs its scores as numpy scalars, which plain ``torch.load(weights_only=True)`` refuses. numpy 1 and 2
    call the function that makes them by different names.

    Raises:
        UnsoundWeightsError: the file is damaged, or its weights are not finite.
    """
    scalar = np._core.multiarray.scalar
    scalars = [scalar, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals([*scalars, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType]):
        try:
            return read_weight_file(path)
        except UnsoundWeightsError as error:
            raise UnsoundWeightsError(f"{path} {error}") from error


def from_reference(state: dict[str, Any], target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the authors' weights to ours and check that they fit.

    Args:
        state: the authors' state_dict, or an nnU-Net checkpoint that holds one under "network_weights".
        target: state_dict of the network that is to take them.

    Returns:
        A state_dict with exactly ``target``'s keys and shapes.

    Raises:
        ValueError: a weight is missing, unknown or of another shape; the message lists them.
    """
    weights = state.get("network_weights", state)
    renamed = {_rename(key): value for key, value in weights.items()}
    problems = [f"missing: {key}" for key in target if key not in renamed]
    problems += [f"unknown: {key}" for key in renamed if key not in target]
    problems += [
        f"{key} has shape {tuple(renamed[key].shape)}, the network wants {tuple(value.shape)}"
        for key, value in target.items()
        if key in renamed and renamed[key].shape != value.shape
    ]
    if problems:
        shown = "\n  ".join(problems[:10]) + ("\n  …" if len(problems) > 10 else "")
        raise ValueError(
            f"these reference weights do not fit this network ({len(problems)} problems); check spatial_dims, "
            f"in_channels, out_channels and init_filters:\n  {shown}"
        )
    return renamed


def _rename(key: str) -> str:
    key = _WRAPPERS.sub("", key)
    encoder = re.match(r"down_layers\.(\d+)\.(\d+)\.(.+)", key)
    if encoder:
        stage, block, rest = encoder.groups()
        if block == "0":  # the authors count a stage's downsampling as its block 0
            return f"encoder.{stage}.downsample.{rest}"
        return f"encoder.{stage}.blocks.{int(block) - 1}." + re.sub(r"^conv(\d)\.", r"vss\1.", rest)
    for pattern, replacement in _RENAMES.items():
        key = re.sub(pattern, replacement, key)
    return key
