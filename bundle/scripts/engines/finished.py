"""Whether a prediction that lies on disk is one: whole, a label map, and of its image."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ..common.errors import UserError
from ..images.formats import read_raw
from ..images.geometry import SPACING_TOLERANCE
from ..images.headers import read_header

__all__ = ["prediction_problem", "probabilities_problem"]


def prediction_problem(prediction: Path, image: str | Path) -> str | None:
    """What is wrong with a prediction, or None. Of the image only the header is read.

    The prediction itself is read to its end, since an interrupted copy shows nowhere else; a label map is small.

    Args:
        prediction: a label map.
        image: the file that it was made from, the first one where every channel has its own.
    """
    if not prediction.is_file() or not prediction.stat().st_size:
        return "is empty"
    try:
        array = read_raw(prediction, label=True).array
    except UserError:
        return "cannot be read"
    found, expected = read_header(prediction), read_header(image)
    if len(array) != 1 or array.dtype.kind not in "bui" or found is None:
        return "is no label map"
    if expected is None:  # nothing to compare with; whoever reads the image says what is wrong with it
        return None
    if found[0] != expected[0]:
        return "has another size than its image"
    spacings = found[1], expected[1]
    if None not in spacings and not np.allclose(*spacings, rtol=SPACING_TOLERANCE, atol=0):
        return "has another voxel size than its image"
    return None


def probabilities_problem(path: Path) -> str | None:
    """What is wrong with the probabilities that were saved beside a prediction, or None; read as far as is cheap."""
    if not path.is_file():
        return "has no probabilities beside it"
    try:
        whole = zipfile.ZipFile(path).testzip() is None if path.suffix == ".npz" else read_header(path) is not None
    except (OSError, zipfile.BadZipFile):
        whole = False
    return None if whole else "has no whole probabilities beside it"
