"""Small generated data for the report: a folder each for images, labels, predictions and postprocessed ones."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])  # LPS, anisotropic


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nib.save(nib.Nifti1Image(array, affine), path)


def cube(shape: tuple[int, ...], first: int, last: int, value: int = 1) -> np.ndarray:
    label_map = np.zeros(shape, np.uint8)
    label_map[(slice(first, last),) * len(shape)] = value
    return label_map


def write_volumes(folder: Path) -> None:
    """Three cases "a", "b", "c" of 16 x 14 x 12 voxels with the classes 1 and 5; "a" is the worst prediction."""
    shape = (16, 14, 12)
    noise = np.random.default_rng(0)
    for shift, name in ((3, "a"), (1, "b"), (0, "c")):
        label = cube(shape, 3, 8) + cube(shape, 9, 11, 5)
        prediction = np.roll(label, shift, 0)
        raw = prediction.copy()
        raw[0, 0, 0] = 1
        write(folder / "images" / f"{name}.nii.gz", noise.normal(100 * label, 5).astype(np.float32))
        write(folder / "labels" / f"{name}.nii.gz", label)
        write(folder / "pred" / f"{name}.nii.gz", raw if name == "b" else prediction)
        write(folder / "post" / f"{name}.nii.gz", prediction)
    task = {"name": "blocks", "spatial_dims": 3, "labels": {"small <b>": 5, "large": 1}}
    (folder / "task.json").write_text(json.dumps(task))
