"""From logits to the label map that is kept: back to the original grid, argmax, largest components."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CopyItemsd,
    Invertd,
    InvertibleTransform,
    Lambda,
    Lambdad,
    MapTransform,
    Transform,
)
from monai.utils import convert_to_dst_type

from ..common.command_line import as_flag
from ..common.errors import UserError
from ..engines.prediction import SavePredictiond
from .apply import ApplyPostprocessingd, Rules, apply_rules, largest_components

__all__ = ["CheckFinited", "for_scoring", "to_label_map", "to_saved_label_map"]


def to_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    keep_largest: bool | str = False,
    probabilities_key: str | None = None,
    rules: str | None = None,
    checkpoint: str | Sequence[str] | None = None,
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

    Logits that are not finite are an error of the case (see CheckFinited).
    """
    transforms: list[Transform] = [CheckFinited(["pred"])]
    if any(isinstance(transform, InvertibleTransform) for transform in preprocessing.transforms):
        # not for pictures, which keep their grid
        transforms.append(Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, device="cpu"))
    if probabilities_key:
        transforms.append(CopyItemsd("pred", names=probabilities_key))
        transforms.append(Activationsd(probabilities_key, softmax=True))
    transforms.append(AsDiscreted("pred", argmax=True))
    values = torch.tensor([0, *sorted(labels.values())])
    transforms.append(Lambdad("pred", partial(_label_values, values=values)))
    if as_flag(keep_largest, "keep_largest"):
        transforms.append(Lambdad("pred", partial(_cleaned, rules=largest_components(labels))))
    return [*transforms, ApplyPostprocessingd(["pred"], labels, rules, checkpoint)]


def to_saved_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    output_dir: str,
    keep_largest: bool | str = False,
    save_probabilities: bool | str = False,
    rules: str | None = None,
    checkpoint: str | Sequence[str] | None = None,
) -> list[Transform]:
    """The same, and save it (see SavePredictiond), with the probabilities if ``save_probabilities``."""
    key = "probabilities" if as_flag(save_probabilities, "save_probabilities") else None
    transforms = to_label_map(preprocessing, labels, keep_largest, key, rules, checkpoint)
    return [*transforms, SavePredictiond(["pred"], output_dir, key)]


class CheckFinited(MapTransform):
    """Refuse logits (classes, *spatial) with NaN or infinity, whose largest would be a label map like any other.

    Raises:
        UserError: names the image.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            extremes = torch.aminmax(torch.as_tensor(data[key]).detach())  # NaN comes through; needs no second tensor
            if not all(math.isfinite(extreme) for extreme in torch.stack(extremes).tolist()):
                raise UserError(
                    f"{data['image'].meta['filename_or_obj']}: the network's output holds NaN or infinite values, so "
                    "there is no label map; try --amp false, and if that does not help, other weights"
                )
        return dict(data)


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


def _label_values(indices: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Class indices to the values that label files hold."""
    return convert_to_dst_type(values[torch.as_tensor(indices).cpu().long()], indices, dtype=torch.int32)[0]
