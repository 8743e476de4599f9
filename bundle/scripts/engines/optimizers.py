"""What an optimiser's weight decay applies to, and in how many kernels it steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

__all__ = ["decay_matrices", "runs_fused"]


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


def runs_fused(device: torch.device | str) -> bool:
    """Whether the optimiser does a step in few kernels: on a GPU, where the host would else take longer to start them
    than they take, and to ask the gradient scaler in each step whether to. A CPU keeps its order of sums."""
    return torch.device(device).type == "cuda"
