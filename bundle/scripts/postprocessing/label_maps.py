"""From logits to the label map that is kept: back to the original grid, argmax, largest components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.transforms import Compose, Lambda, Lambdad, Transform
from monai.utils import convert_to_dst_type

from ..common.command_line import from_words
from ..engines.prediction import SavePredictiond
from .apply import ApplyPostprocessingd, Rules, apply_rules, largest_components
from .from_slabs import ToLabelMapd

__all__ = ["for_scoring", "to_label_map", "to_saved_label_map"]


@from_words
def to_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    keep_largest: bool = False,
    probabilities_key: str | None = None,
    rules: str | None = None,
    checkpoint: str | Sequence[str] | None = None,
    folder: str | None = None,
) -> list[Transform]:
    """Logits "pred" (classes, *grid of the network) -> label map "pred" (1, *grid of the image file).

    Logits, not labels, are resampled to the original grid (nnU-Net's rule). The label map holds the values that
    ``labels`` gives, as the label files do.

    Args:
        preprocessing: what "image" went through; it is inverted.
        labels: name -> value of the foreground classes.
        keep_largest: keep only the largest connected component of each label.
        probabilities_key: where to keep the class probabilities, or None.
        rules, checkpoint: learned rules that clean the label map last, see postprocessing.apply.find_rules; None: none.
        folder: where large probabilities may lie meanwhile; None: in memory.

    Logits that are not finite are an error of the case (see ToLabelMapd).
    """
    transforms: list[Transform] = [ToLabelMapd("pred", preprocessing, labels, probabilities_key, folder)]
    if keep_largest:
        transforms.append(Lambdad("pred", partial(_cleaned, rules=largest_components(labels))))
    return [*transforms, ApplyPostprocessingd(["pred"], labels, rules, checkpoint)]


@from_words
def to_saved_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    output_dir: str,
    keep_largest: bool = False,
    save_probabilities: bool = False,
    rules: str | None = None,
    checkpoint: str | Sequence[str] | None = None,
) -> list[Transform]:
    """The same, and save it (see SavePredictiond), with the probabilities if ``save_probabilities``."""
    key = "probabilities" if save_probabilities else None
    transforms = to_label_map(preprocessing, labels, keep_largest, key, rules, checkpoint, output_dir)
    return [*transforms, SavePredictiond(["pred"], output_dir, key)]


def for_scoring(classes: int) -> list[Transform]:
    """Logits "pred" and class indices "label" to one-hot (classes, *spatial), empty where the label is -1: an ignored
    voxel then counts in no class.
    """
    return [Lambda(partial(_one_hot_pair, classes=classes))]


def _one_hot_pair(data: Mapping[str, Any], classes: int) -> dict[str, Any]:
    label = torch.as_tensor(data["label"])
    index = torch.as_tensor(data["pred"]).argmax(dim=0, keepdim=True)
    order = torch.arange(classes, device=index.device).view(-1, *[1] * (index.ndim - 1))
    pred = (index == order) & (label.to(index.device) >= 0)
    return {**data, "pred": pred.to(torch.uint8), "label": (label == order.to(label.device)).to(torch.uint8)}


def _cleaned(label_map: torch.Tensor, rules: Rules) -> torch.Tensor:
    cleaned = apply_rules(label_map[0].cpu().numpy(), rules)
    return convert_to_dst_type(cleaned[None], label_map)[0]
