"""Pairing and reading of label maps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from scripts.common.errors import UserError
from scripts.images.label_names import values_in
from scripts.images.pairs import files_by_case, pair_files, physical_spacing, read_label_map, read_pair
from scripts.images.task import Task

TASK = Task({"a": 2})


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    for name in ("a", "b"):
        for folder in (predictions, labels):
            write(folder / f"{name}.nii.gz", np.full((3, 4, 5), 2, np.uint8), (1, 2, 3))
    return predictions, labels


def test_pairs_in_order(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a_probabilities.nii.gz", np.zeros((3, 4, 5, 2), np.float32))
    (folders[0] / "predictions.json").write_text("{}")
    pairs = pair_files(*folders)
    assert [pair.name for pair in pairs] == ["a", "b"] and pairs[1].label == folders[1] / "b.nii.gz"
    prediction, label = read_pair(pairs[0], TASK)
    assert prediction.spacing == pytest.approx([1, 2, 3]) and label.array.dtype == np.uint8


def test_every_unpaired_name_is_listed(folders: tuple[Path, Path]) -> None:
    for name in ("x1", "x2"):
        write(folders[0] / f"{name}.nii.gz", np.zeros((3, 4, 5), np.uint8))
    for name in ("y1", "y2"):
        write(folders[1] / f"{name}.nii.gz", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(UserError, match=r"(?s)without a label.*x1, x2.*without a prediction.*y1, y2"):
        pair_files(*folders)
    for name in ("x1", "x2"):
        (folders[0] / f"{name}.nii.gz").unlink()
    with pytest.raises(UserError, match=r"--allow_missing leaves them out\): y1, y2"):
        pair_files(*folders)
    assert len(pair_files(*folders, allow_missing=True)) == 2


def test_two_files_of_a_case(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.nii", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(UserError, match="both belong to the case a"):
        files_by_case(folders[0])
    with pytest.raises(UserError, match="nowhere does not exist"):
        files_by_case(folders[0] / "nowhere")


def test_grids_and_values(folders: tuple[Path, Path]) -> None:
    pair = pair_files(*folders)[0]
    with pytest.raises(UserError, match=r"predictions/a.nii.gz holds the label value\(s\) 2; the task has \[0, 1, 7\]"):
        read_pair(pair, Task({"a": 1, "b": 7}))
    write(pair.label, np.full((3, 4, 5), 255, np.uint8), (1, 2, 3))
    assert (read_pair(pair, Task({"a": 2}, ignore_label=255))[1].array == 255).all()
    write(pair.label, np.zeros((3, 4, 6), np.uint8), (1, 2, 3))
    with pytest.raises(UserError, match=r"a.nii.gz does not lie on the grid.*\(3, 4, 5\) and \(3, 4, 6\)"):
        read_pair(pair, TASK)
    write(pair.label, np.zeros((3, 4, 5), np.uint8), (1, 2, 4))
    with pytest.raises(UserError, match="spacing 1 x 2 x 3 mm against 1 x 2 x 4 mm"):
        read_pair(pair, TASK)


def test_masks_of_0_and_255_get_a_hint(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"holds the label value\(s\) 255; the task has \[0, 1\]; masks often have 255"):
        read_label_map(tmp_path / "a.png", [1])


def test_pictures_have_no_spacing(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(tmp_path / "p.png")
    label_map = read_label_map(tmp_path / "p.png", [1])
    assert label_map.spacing is None and label_map.array.shape == (4, 6)
    picture = MetaTensor(torch.zeros(1, 4, 6), meta={"spacing_known": False})
    volume = MetaTensor(torch.zeros(1, 4, 6, 2), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    assert physical_spacing(picture) is None and physical_spacing(volume) == pytest.approx([2, 3, 4])


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "<i2", ">i2", "i4", "f4"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 6), (5,)])
def test_values_of_a_label_map(dtype: str, shape: tuple[int, ...]) -> None:
    values = [0, 3, 127, *([200, 255] if dtype == "u1" else [-7]), *([300] if "2" in dtype else [])]
    values = [value for value in values if value >= 0 or "u" not in dtype]
    array = np.resize(np.array(values).astype(dtype), shape)
    assert values_in(array).tolist() == np.unique(array).tolist()
    assert values_in(np.asfortranarray(array)).tolist() == np.unique(array).tolist()
