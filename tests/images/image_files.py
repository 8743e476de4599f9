"""Images of tests that are written as their libraries write them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def picture(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array).save(path)
    return str(path)
