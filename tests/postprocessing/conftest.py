"""A small data set whose predictions have the faults that postprocessing can repair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rule_cases import SHAPE, write


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Six cases in predictions/ and labels/, of an "organ" (1) and a "lesion" (3) that touches it.

    Faults: organ has a distant second part in every case (removed with the foreground's smaller components),
    and a hole; lesion has a true second part in every case, and specks of two voxels beside the organ.
    """
    for case in range(6):
        label = np.zeros(SHAPE, np.uint8)
        label[2:12, 2:12, 2:12], label[4:8, 4:8, 10:16], label[9:11, 9:11, 12:14] = 1, 3, 3
        prediction = label.copy()
        prediction[13:15, 13:15, 20:23] = 1
        prediction[6, 6, 6] = 0
        prediction[1, 3 + case % 3, 2:4] = 3
        write(tmp_path / f"labels/case_{case}.nii.gz", label)
        write(tmp_path / f"predictions/case_{case}.nii.gz", prediction)
    return tmp_path
