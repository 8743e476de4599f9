"""Files of weights: reading them, loading them into a network, and what the settings.json beside them says."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common.command_line import differing, or_none
from ..common.errors import UserError, in_one_line
from ..common.readable_json import read_json
from ..common.root_causes import lack_of_memory
from ..common.run_folder import RunFolder
from ..networks import conv_stages_of
from ..networks.weight_files import UnsoundWeightsError, read_weight_file

__all__ = [
    "check_conv_stages",
    "check_preparation",
    "check_scan_order",
    "load_weights",
    "put_into",
    "read_settings",
    "read_sound_file",
    "read_weights",
    "weights_digest",
]

logger = logging.getLogger("lightm_unet")


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load a file of weights (a state_dict) into a network.

    Raises:
        UserError: the file is missing or no such file, was damaged or holds NaN, or its weights do not fit the
            network, or the settings.json beside it says that they fit another scan order.
    """
    put_into(network, read_weights(path), path)


def put_into(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load weights that were read from ``path`` into a network.

    Raises:
        UserError: they do not fit it; see load_weights.
    """
    check_conv_stages(network, state, path)
    check_scan_order(network, path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise UserError(
            f"the weights {path} do not fit the network; check the task overlay, init_filters and stem "
            f"({' '.join(reasons)[:300]})"
        ) from error


def read_weights(path: str | Path, option: str = "--checkpoint") -> dict[str, torch.Tensor]:
    """A file of weights, or those of a checkpoint.pt, on the CPU; ``option`` is what names it on the command line.

    Raises:
        UserError: the file is missing or holds something else, was damaged, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: train first, or give another file with {option}")
    content = read_sound_file(path, f"give another with {option}")
    state = content.get("network", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds something else than the weights of a network: give another with {option}")
    return dict(state)


def read_sound_file(path: Path, remedy: str) -> Any:
    """What a file of weights or a checkpoint holds, on the CPU.

    Args:
        remedy: what to do about a broken one, as the end of the message.

    Raises:
        UserError: it is no such file, or was damaged, or holds NaN or infinite values.
    """
    try:
        return read_weight_file(path)
    except UnsoundWeightsError as error:
        raise UserError(f"{path} {error}; {remedy}") from error
    except Exception as error:  # zipfile and torch.load have many errors for a broken file
        if reason := lack_of_memory(error):
            raise UserError(f"{path} cannot be read: {reason}") from error
        reason = in_one_line(error).split(". ")[0]  # what follows advises to read untrusted files
        raise UserError(
            f"{path} is not a file of PyTorch weights, or not a whole one ({reason}): copy it again, or {remedy}"
        ) from error


def weights_digest(path: str | Path) -> str:
    """What tells a file of weights from every other: a digest of its bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_settings(checkpoint: str | Path) -> dict[str, Any]:
    """What the settings.json beside a file of weights says of their training; nothing where there is none.

    Raises:
        UserError: it is broken.
    """
    file = RunFolder.of(checkpoint).settings
    advice = "put the one of the training back, or remove it, and nothing is compared with it"
    return read_json(file, advice=advice) if file.is_file() else {}


def check_preparation(path: str | Path, preparation: Mapping[str, Any]) -> None:
    """Warn of weights whose settings.json says that their images were prepared otherwise, or their classes named so, or
    that the network pooled otherwise, which no weight's shape tells."""
    trained = read_settings(path)
    changed = [f"{key} {trained[key]}, now it is {preparation[key]}" for key in differing(trained, preparation)]
    if changed:
        logger.warning(
            f"the weights {path} were trained with {'; '.join(changed)}: predictions may be wrong, unless that is what "
            "you want; the task overlay of their training is the safe choice"
        )
    is_2d = trained.get("spatial_dims") == 2 and or_none(trained.get("slice_axis")) is None
    if is_2d and "rows_first" not in trained and preparation.get("rows_first"):
        logger.warning(
            f"the weights {path} are of a time when 2D NIfTI, NRRD and MetaImage files came with rows and columns "
            "exchanged: if they learnt from such files, train anew"
        )


def check_conv_stages(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights of a network with convolutions in more or fewer stages, as those of version 0.6 are.

    Raises:
        UserError: names the option with which they fit.
    """
    own, theirs = conv_stages_of(network.state_dict()), conv_stages_of(state)
    if own != theirs:
        raise UserError(
            f"the weights {path} are those of a network with conv_stages {theirs}, this one has {own}: give "
            f'--conv_stages {theirs}, or put "conv_stages": {theirs} into the task\'s overlay'
        )


def check_scan_order(network: torch.nn.Module, path: str | Path) -> None:
    """Refuse weights that were trained with another scan order than the network's, as their settings.json tells.

    No weight's shape tells of the order in which the voxels were read; without a settings.json nothing does.

    Raises:
        UserError: the orders differ.
    """
    trained = read_settings(path).get("scan_order")
    own = getattr(network, "scan_order", trained)
    if trained is not None and own != trained:
        raise UserError(
            f"the weights {path} were trained with scan_order {trained}, but the network reads in {own} order: "
            f"give --scan_order {trained}"
        )
