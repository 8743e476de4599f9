"""Small generated data sets, and a finished run on each; made once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from threads import threads
from workflow_runs import SMALL_2D, SMALL_3D, TINY, run, write_dataset_json, write_volume


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits."""
    with threads(1):
        yield


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten volumes with a bright anterior and a dark posterior ball, in an LPS grid of 1 x 1.5 x 1 mm."""
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    cases = []
    for i in range(10):
        shape = (14 + i % 3, 22 + i % 4, 15)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
        label = np.zeros(shape, np.uint8)
        for value, y in ((1, 6), (2, 15)):
            label[((grid - np.array([7, y, 7])[:, None, None, None]) ** 2).sum(0) < 16] = value
        image = rng.normal(100, 5, shape) + np.array([0, 60, -60])[label]
        affine = np.diag([-1, -1.5, 1, 1.0])
        affine[:3, 3] = (90, 120, -70)
        write_volume(root / f"imagesTr/case_{i}.nii.gz", image.astype(np.float32), affine)
        write_volume(root / f"labelsTr/case_{i}.nii.gz", label, affine)
        cases.append((f"./imagesTr/case_{i}.nii.gz", f"./labelsTr/case_{i}.nii.gz"))
    write_dataset_json(root, {"0": "background", "1": "anterior", "2": "posterior"}, cases)
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten grey pictures of 40 x 56 pixels (height x width) with a bright ellipse near the upper left."""
    root = tmp_path_factory.mktemp("pictures")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    cases = []
    for i in range(10):
        y, x = np.mgrid[:40, :56]
        label = (((y - 12) / 8) ** 2 + ((x - 16 - i % 3) / 11) ** 2 < 1).astype(np.uint8)
        image = np.clip(rng.normal(90, 6, label.shape) + 80 * label, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"imagesTr/case_{i}.png")
        Image.fromarray(label).save(root / f"labelsTr/case_{i}.png")
        cases.append((f"imagesTr/case_{i}.png", f"labelsTr/case_{i}.png"))
    write_dataset_json(root, {"0": "background", "1": "lung"}, cases)
    return root


@pytest.fixture(scope="session")
def run_3d(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run of two epochs."""
    output = tmp_path_factory.mktemp("run_3d") / "run"
    with threads(1):
        run("training", "train.json", dataset_dir=str(volumes), output_dir=str(output), **TINY, **SMALL_3D)
    return output


@pytest.fixture(scope="session")
def run_2d(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pictures long enough to find the ellipse."""
    output = tmp_path_factory.mktemp("run_2d") / "run"
    settings = TINY | {"iterations_per_epoch": 20, "learning_rate": 0.01}
    lung = ("train.json", "tasks/lung_xray.json")
    with threads(1):
        run("training", *lung, dataset_dir=str(pictures), output_dir=str(output), **settings, **SMALL_2D)
    return output
