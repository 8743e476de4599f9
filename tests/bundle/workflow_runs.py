"""What the tests of whole workflows share: the smallest settings, and a run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import find_user_error

BUNDLE = Path(__file__).parents[2] / "bundle"
CONFIGS = BUNDLE / "configs"
SMALL_3D = {
    "patch_size": [16, 24, 16],
    "spacing": "null",
    "batch_size": 2,
}
SMALL_2D = {"patch_size": [32, 32], "batch_size": 2}
TINY = {
    "init_filters": 8,
    "iterations_per_epoch": 2,
    "num_workers": 0,
    "epochs": 2,
    "device": "cpu",
    "seed": 1,
}


def run(run_id: str, *configs: str, **overrides: Any) -> None:
    files = [str(CONFIGS / config) for config in configs]
    if run_id == "training":  # beside the data set, not in the bundle
        overrides = {"cache_dir": f"{overrides['dataset_dir']}/preprocessed"} | overrides
    monai.bundle.run(run_id, config_file=files, bundle_root=str(BUNDLE), **overrides)


def error_of(run_id: str, *configs: str, **overrides: Any) -> str:
    """The message of the UserError that a run ends with."""
    with pytest.raises(Exception) as caught:
        run(run_id, *configs, **overrides)
    user_error = find_user_error(caught.value)
    assert user_error is not None, caught.value
    return str(user_error)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_dataset_json(root: Path, labels: dict[str, str], cases: list[tuple[str, str]]) -> None:
    description = {
        "modality": {"0": "any"},
        "labels": labels,
        "training": [{"image": image, "label": label} for image, label in cases],
    }
    (root / "dataset.json").write_text(json.dumps(description))
