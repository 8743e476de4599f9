"""Start a training from the weights of another one (nnU-Net's pretrained_weights)."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..common.errors import UserError, first_few
from .weights import check_conv_stages, check_scan_order, read_weights

__all__ = ["start_from"]

HEAD = "head."  # of LightMUNet: what turns features into classes
logger = logging.getLogger("lightm_unet")


def start_from(network: torch.nn.Module, pretrained: str | Path | None, resume: bool = False) -> None:
    """Load weights that another data set was learned with, before the first epoch.

    All must fit but those of the head, which start anew where the classes are others.

    Args:
        network: takes the weights.
        pretrained: their file, or None to start from random ones.
        resume: whether the run only goes on; its own checkpoint then has the weights.

    Raises:
        UserError: the file is missing, is none of weights, does not fit, or belongs to other conv_stages or another
            scan order.
    """
    if pretrained is None or resume:
        return
    weights, own = read_weights(pretrained, "--pretrained"), network.state_dict()
    check_conv_stages(network, weights, pretrained)
    misfits = [key for key in own if key not in weights or weights[key].shape != own[key].shape]
    problems = [key for key in misfits if not key.startswith(HEAD)] + sorted(set(weights) - set(own))
    if problems:
        raise UserError(
            f"pretrained: {len(problems)} weights of {pretrained} do not fit the network ({first_few(problems, 3)}): "
            "check in_channels, init_filters, strides and stem"
        )
    check_scan_order(network, pretrained)
    network.load_state_dict({key: own[key] if key in misfits else weights[key] for key in own})
    logger.info("starting from the weights %s%s", pretrained, ", with a new head" if misfits else "")
