"""A small data set of the hippocampus's task, and settings with which it trains in a moment."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["AFFINE", "SMALL", "write_small_data"]

AFFINE = np.array([[-1.1, 0, 0, 90], [0, -1.2, 0, 120], [0, 0, 1, -70], [0, 0, 0, 1.0]])
SMALL = {
    "patch_size": [16, 24, 16],
    "spacing": None,
    "batch_size": 2,
    "init_filters": 8,
    "iterations_per_epoch": 2,
    "num_workers": 0,
    "seed": 1,
    "device": "cpu",
}


def write_small_data(root: Path, count: int = 5) -> Path:
    """Volumes with two boxes, a brighter and a bright one, in the layout of the Decathlon."""
    rng, pairs = np.random.default_rng(0), []
    for i in range(count):
        label = np.zeros((14, 22 + i % 3, 15), np.uint8)
        label[4:9, 4:9, 4:9], label[4:9, 12:18, 4:9] = 1, 2
        image = rng.normal(100, 5, label.shape).astype(np.float32) + 40 * label
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), root / f"{folder}/case_{i}.nii.gz")
        pairs.append({"image": f"imagesTr/case_{i}.nii.gz", "label": f"labelsTr/case_{i}.nii.gz"})
    labels = {"0": "background", "1": "anterior", "2": "posterior"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "training": pairs}))
    return root
