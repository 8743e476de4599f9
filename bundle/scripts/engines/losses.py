"""The training loss: Dice and cross-entropy, blind to voxels that nobody labelled."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

__all__ = ["DiceCELoss"]


class DiceCELoss(torch.nn.Module):
    """Soft Dice loss of the foreground classes plus cross-entropy of all, over the voxels with a label.

    Where every voxel has one, the same as MONAI's DiceCELoss(include_background=False, to_onehot_y=True,
    softmax=True); but without a one-hot copy of the label, and a label of -1 counts in neither term.

    Args:
        smooth: added to the Dice's numerator and denominator.
        batch: one Dice over all images of the batch together (nnU-Net's batch_dice) instead of each image's mean.
    """

    def __init__(self, smooth: float = 1e-5, batch: bool = False) -> None:
        super().__init__()
        self.smooth = smooth
        self.batch = batch

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes, *spatial) and class indices (batch, 1, *spatial), -1 for no label, to a number."""
        if label.shape != (len(logits), 1, *logits.shape[2:]):
            raise ValueError(f"label {tuple(label.shape)} does not fit logits {tuple(logits.shape)}")
        logits, label = logits.float(), torch.as_tensor(label)
        known = label >= 0
        errors = cross_entropy(logits, label[:, 0].long(), ignore_index=-1, reduction="sum")
        return self._dice(logits, label, known) + errors / known.sum().clamp(min=1)

    def _dice(self, logits: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(1, logits.shape[1], device=logits.device, dtype=label.dtype)
        expected = label == classes.view(1, -1, *[1] * (logits.ndim - 2))
        predicted = torch.softmax(logits, dim=1)[:, 1:] * known
        axes = (*([0] if self.batch else []), *range(2, logits.ndim))
        overlap = (predicted * expected).sum(axes)
        total = predicted.sum(axes) + expected.sum(axes)
        return (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()
