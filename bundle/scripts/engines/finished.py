"""Whether a prediction that lies on disk is one: whole, a label map, and of its image."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..data.formats import read_raw
from ..data.headers import read_header
from ..errors import UserError

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
        channels = len(read_raw(prediction, label=True).array)
    except UserError:
        return "cannot be read"
    expected, found = read_header(image), read_header(prediction)
    if channels != 1 or found is None:
        return "is no label map"
    if expected is not None and found[0] != expected[0]:
        return "has another size than its image"
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
