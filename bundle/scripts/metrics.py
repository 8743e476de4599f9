"""Scores of one predicted label map: Dice, IoU and HD95 per class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

__all__ = ["METRICS", "case_scores"]

METRICS = ("dice", "iou", "hd95")


def case_scores(
    prediction: torch.Tensor, label: torch.Tensor, labels: Mapping[str, int], spacing: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Score each class of one case.

    Args:
        prediction, label: label maps of the same shape (*spatial), integers.
        labels: name -> value of the foreground classes.
        spacing: voxel size along each axis; HD95 comes in its unit (mm, or pixels for 1).

    Returns:
        class name -> {"dice", "iou", "hd95"}; NaN where it is undefined: every score where a class is in
        neither map, HD95 where it is in one of them only.
    """
    values = list(labels.values())
    predicted, expected = (torch.stack([m == value for value in values])[None] for m in (prediction, label))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns for each class that is absent; NaN says it
        dice = compute_dice(predicted, expected, include_background=True)
        iou = compute_iou(predicted, expected, include_background=True)
        hd95 = compute_hausdorff_distance(
            predicted, expected, include_background=True, percentile=95, spacing=list(spacing)
        )
    hd95 = torch.where(hd95.isfinite(), hd95, torch.nan)
    return {
        name: {"dice": float(dice[0, i]), "iou": float(iou[0, i]), "hd95": float(hd95[0, i])}
        for i, name in enumerate(labels)
    }
