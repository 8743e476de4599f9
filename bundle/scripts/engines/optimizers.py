"""What an optimiser's weight decay applies to."""

from __future__ import annotations

from typing import Any

import torch.nn as nn

__all__ = ["decay_matrices"]


def decay_matrices(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: matrices and convolution kernels decay.

    What does not: biases, scales of norms and of skips, and each Mamba layer's A_log, whose decay towards 0 would pull
    all its memories to one length (Gu and Dao's code does not decay it either).

    Args:
        network: whose parameters are to be trained.
        weight_decay: of the first group; the second has 0.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[parameter.ndim > 1 and not name.endswith("A_log")].append(parameter)
    return [{"params": members, "weight_decay": weight_decay * decays} for decays, members in groups.items()]
