"""Where the sums of a sliding window are kept: decided from sizes and free memory before anything is held."""

from __future__ import annotations

import logging

import torch

from ..common.errors import UserError
from ..common.free_memory import free_memory

__all__ = ["place_of"]

LARGE = 2**30  # bytes; less is not worth a line
SHARE = 0.5  # of a GPU's free memory; the rest is the network's
logger = logging.getLogger("lightm_unet")


def place_of(needed: int, what: str, device: torch.device) -> torch.device:
    """The network's device if its memory has room, else the host; said in one line where it matters.

    Args:
        needed: bytes.
        what: they are for, for the line.
        device: the network's.

    Raises:
        UserError: the host has no room either.
    """
    if device.type == "cuda" and needed <= SHARE * _free_on_gpu(device):
        return device
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{what} needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: close other programs, raise "
            "the limit of this job or container, or predict a smaller image (crop it)"
        )
    if device.type != "cpu" or needed >= LARGE:
        there = "" if free is None else f" of the {free / 1e9:.1f} GB that are free"
        logger.info(f"{what} takes {needed / 1e9:.1f} GB of memory{there} on the host")
    return torch.device("cpu")


def _free_on_gpu(device: torch.device) -> int:
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps it for later
    return torch.cuda.mem_get_info(device)[0] + unused
