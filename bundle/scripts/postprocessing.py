"""From logits to the label map that is kept: back to the original grid, argmax, largest components."""

from __future__ import annotations

from collections.abc import Mapping

from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CopyItemsd,
    Invertd,
    InvertibleTransform,
    KeepLargestConnectedComponentd,
    Transform,
)

from .command_line import as_flag
from .engines.prediction import SavePredictiond

__all__ = ["to_label_map", "to_saved_label_map"]


def to_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    keep_largest: bool | str = False,
    probabilities_key: str | None = None,
) -> list[Transform]:
    """Logits "pred" (classes, *grid of the network) -> label map "pred" (1, *grid of the image file).

    Logits, not labels, are resampled to the original grid (nnU-Net's rule).

    Args:
        preprocessing: what "image" went through; it is inverted.
        labels: name -> value of the foreground classes.
        keep_largest: keep only the largest connected component of each label.
        probabilities_key: where to keep the class probabilities, or None.
    """
    transforms: list[Transform] = []
    if any(isinstance(transform, InvertibleTransform) for transform in preprocessing.transforms):
        # not for pictures, which keep their grid
        transforms.append(Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, device="cpu"))
    if probabilities_key:
        transforms.append(CopyItemsd("pred", names=probabilities_key))
        transforms.append(Activationsd(probabilities_key, softmax=True))
    transforms.append(AsDiscreted("pred", argmax=True))
    if as_flag(keep_largest, "keep_largest"):
        transforms.append(KeepLargestConnectedComponentd("pred", applied_labels=list(labels.values())))
    return transforms


def to_saved_label_map(
    preprocessing: Compose,
    labels: Mapping[str, int],
    output_dir: str,
    keep_largest: bool | str = False,
    save_probabilities: bool | str = False,
) -> list[Transform]:
    """The same, and save it (see SavePredictiond), with the probabilities if ``save_probabilities``."""
    key = "probabilities" if as_flag(save_probabilities, "save_probabilities") else None
    transforms = to_label_map(preprocessing, labels, keep_largest, key)
    return [*transforms, SavePredictiond(["pred"], output_dir, key)]
