"""How the learning rate goes over a training's epochs."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["polynomial_with_warmup"]

POWER = 0.9  # nnU-Net's


def polynomial_with_warmup(optimizer: Optimizer, epochs: int, warmup: float = 0.0) -> LambdaLR:
    """nnU-Net's polynomial decay to zero, (1 - epoch / epochs)^0.9, which a linear rise from near zero precedes.

    Args:
        optimizer: its learning rates are the highest ones.
        epochs: of the whole training.
        warmup: the share of them, from 0 to below 1, in which the learning rate rises.
    """
    rising = warmup * epochs

    def factor(epoch: int) -> float:
        return min(1.0, (epoch + 1) / (rising + 1)) * max(0.0, 1 - epoch / epochs) ** POWER

    return LambdaLR(optimizer, factor)
