"""Reading and writing of images: what is refused, and that geometry survives."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.data.checks import check_cases
from scripts.data.images import (
    LoadCased,
    list_images,
    load_image,
    replacing,
    save_label_map,
    save_probabilities,
)
from scripts.errors import UserError

RNG = np.random.default_rng(0)


def volume(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


def picture(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array).save(path)
    return str(path)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    image = volume(tmp_path / "image.nii.gz", RNG.normal(size=(4, 5, 6)).astype(np.float32))
    return {"image": image, "label": volume(tmp_path / "label.nii.gz", RNG.integers(0, 3, (4, 5, 6), np.uint8))}


def load(case: dict[str, str]) -> dict:
    return LoadCased(list(case), 3, 1, {"a": 1, "b": 2})(case)


def test_a_good_case_loads(case: dict[str, str]) -> None:
    loaded = load(case)
    assert loaded["image"].shape == loaded["label"].shape == (1, 4, 5, 6)


def nan(shape: tuple[int, ...]) -> np.ndarray:
    array = RNG.normal(size=shape).astype(np.float32)
    array[0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("image", nan((4, 5, 6)), "holds NaN"),
        ("image", np.full((4, 5, 6), 7, np.float32), "is constant"),
        ("image", RNG.normal(size=(4, 5, 7)).astype(np.float32), "must have the same size"),
        ("image", RNG.normal(size=(4, 5)).astype(np.float32), "2 spatial dimensions, the network takes 3"),
        ("image", RNG.normal(size=(4, 5, 6, 2)).astype(np.float32), r"has 2 channel\(s\), the network takes 1"),
        ("label", np.full((4, 5, 6), 5, np.uint8), r"label value\(s\) 5; declared are \[0, 1, 2\]"),
        ("label", np.full((4, 5, 6), 0.5, np.float32), r"label value\(s\) 0.5"),
    ],
)
def test_bad_content_is_named(case: dict[str, str], key: str, array: np.ndarray, message: str) -> None:
    volume(Path(case[key]), array)
    with pytest.raises(UserError, match=message) as caught:
        load(case)
    assert case[key] in str(caught.value)


def test_broken_files_are_named_all_at_once(case: dict[str, str], tmp_path: Path) -> None:
    truncated, text = tmp_path / "truncated.nii.gz", tmp_path / "text.nii.gz"
    truncated.write_bytes(Path(case["image"]).read_bytes()[:200])
    text.write_text("not an image")
    cases = [case, *({"image": str(path), "label": case["label"]} for path in (truncated, text, tmp_path / "gone.nii"))]
    with pytest.raises(UserError) as caught:
        check_cases(cases, 3, 1, {"a": 1, "b": 2})
    message = str(caught.value)
    assert message.startswith("3 of 4 cases") and "gone.nii is missing" in message
    assert f"{truncated} cannot be read" in message and f"{text} cannot be read" in message


def test_colour_picture_for_one_channel(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", RNG.integers(0, 255, (6, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"3 channel\(s\), the network takes 1"):
        LoadCased(["image"], 2, 1, {"a": 1})({"image": path})


def test_pictures_keep_rows_and_columns(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 255, (60, 40), np.uint8)
    path = picture(tmp_path / "a.png", pixels)
    image = load_image(path, 2)
    assert image.shape == (1, 60, 40) and np.array_equal(image[0], pixels)
    save_label_map(tmp_path / "out.png", image[0].numpy(), like=path)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), pixels)


def test_nifti_keeps_geometry(tmp_path: Path) -> None:
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.7, 0.7, 5])
    affine[:3, 3] = (12, -34, 56)
    like = volume(tmp_path / "image.nii.gz", RNG.normal(size=(5, 6, 7)).astype(np.float32), affine)
    label = RNG.integers(0, 300, (5, 6, 7))
    save_label_map(tmp_path / "label.nii.gz", label, like)
    save_probabilities(tmp_path / "p.nii.gz", RNG.random((3, 5, 6, 7)), like)
    saved = nib.load(tmp_path / "label.nii.gz")
    assert np.array_equal(saved.affine, nib.load(like).affine) and saved.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(saved.dataobj), label)
    assert nib.load(tmp_path / "p.nii.gz").shape == (5, 6, 7, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "none")
    for name in ("b.nii", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.PNG", "b.nii"]
    with pytest.raises(UserError, match="not an image"):
        list_images(tmp_path / "notes.txt")
