"""Reading and writing of images: what is refused, and that geometry survives."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from generators import write_image
from image_files import picture, volume
from PIL import ExifTags, Image, TiffImagePlugin

from scripts.common.atomic_writing import replacing
from scripts.common.errors import UserError
from scripts.images.cases import LoadCased, load_image, save_label_map, save_probabilities
from scripts.images.files import list_images, prediction_suffix
from scripts.images.headers import read_header

RNG = np.random.default_rng(0)


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
        (
            "label",
            np.full((4, 5, 6), 2**24 + 1, np.int32),
            "holds the label value 16777217: up to 16777216 can be told",
        ),
        ("label", np.full((4, 5, 6), 0.9999999, np.float32), r"label value\(s\) 0.999999881;"),
    ],
)
def test_bad_content_is_named(case: dict[str, str], key: str, array: np.ndarray, message: str) -> None:
    volume(Path(case[key]), array)
    with pytest.raises(UserError, match=message) as caught:
        load(case)
    assert case[key] in str(caught.value)


def test_broken_files_are_named(case: dict[str, str], tmp_path: Path) -> None:
    truncated, text = tmp_path / "truncated.nii.gz", tmp_path / "text.nii.gz"
    truncated.write_bytes(Path(case["image"]).read_bytes()[:200])
    text.write_text("not an image")
    load = LoadCased(["image", "label"], 3, 1, {"a": 1, "b": 2})
    load(case)
    for path, message in (
        (truncated, "cannot be read"),
        (text, "cannot be read"),
        (tmp_path / "gone.nii", "is missing"),
    ):
        with pytest.raises(UserError, match=f"{path.name} {message}"):
            load(case | {"image": str(path)})


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


def test_stored_numbers_are_scaled(tmp_path: Path) -> None:
    """As CT scanners write them: small integers, a slope and an intercept."""
    stored = RNG.integers(-100, 100, (6, 7, 8)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii.gz")
    assert np.allclose(load_image(tmp_path / "a.nii.gz", 3)[0], np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj))


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


def test_channels_in_separate_files(tmp_path: Path) -> None:
    arrays = RNG.random((2, 4, 5, 6)).astype(np.float32)
    paths = [volume(tmp_path / f"a_{i:04d}.nii.gz", array) for i, array in enumerate(arrays)]
    image = load_image(paths, 3)
    assert np.array_equal(image, arrays) and image.meta["filename_or_obj"] == paths[0]
    loaded = LoadCased(["image"], 3, 2, {"a": 1})({"name": "a", "image": paths})
    assert loaded["name"] == "a" and loaded["image"].shape == (2, 4, 5, 6)
    for array, affine, what in (
        (arrays[0, :3], np.eye(4), "sizes"),
        (arrays[0], np.diag([1, 1, 2, 1]), "spacing 1 x 1 x 2 mm against 1 x 1 x 1 mm"),
        (arrays[0], np.diag([-1, 1, 1, 1]), "orientation LAS against RAS"),
        (arrays[0], np.eye(4) + np.eye(4, k=3), "differ by up to 1.0 voxels"),
    ):
        volume(Path(paths[1]), array, affine)
        with pytest.raises(UserError, match=what) as caught:
            load_image(paths, 3)
        assert paths[0] in str(caught.value) and paths[1] in str(caught.value)


def test_a_label_lies_on_its_images_grid(case: dict[str, str]) -> None:
    label = np.asarray(nib.load(case["label"]).dataobj)
    nearly = np.eye(4)
    nearly[:3, 3] = 0.3
    volume(Path(case["label"]), label, nearly)
    loaded = load(case)
    assert np.array_equal(loaded["label"].affine, loaded["image"].affine)
    volume(Path(case["label"]), label, np.diag([1, 1, 3, 1]))
    with pytest.raises(UserError, match=r"label\.nii\.gz does not lie on the grid of its image.*spacing 1 x 1 x 3"):
        load(case)


def test_the_ignore_label_is_no_undeclared_value(case: dict[str, str]) -> None:
    volume(Path(case["label"]), np.full((4, 5, 6), 9, np.uint8))
    assert LoadCased(["label"], 3, 1, {"a": 1}, ignore_label=9)({"label": case["label"]})["label"].max() == 9
    with pytest.raises(UserError, match="value"):
        LoadCased(["label"], 3, 1, {"a": 1})({"label": case["label"]})


@pytest.mark.parametrize("ending", [".MHA", ".MHD", ".NRRD", ".NHDR", ".NII.GZ", ".TIF", ".PNG"])
def test_endings_in_upper_case(tmp_path: Path, ending: str) -> None:
    flat = ending in (".TIF", ".PNG")
    array = RNG.integers(0, 9, (1, 5, 6) if flat else (1, 4, 5, 6), np.uint8)
    path = write_image(tmp_path / f"a{ending.lower()}", array, np.eye(4)).rename(tmp_path / f"a{ending}")
    image = load_image(path, 2 if flat else 3)
    assert np.array_equal(image, array)
    save_label_map(tmp_path / f"out{prediction_suffix(path)}", array[0], like=path)
    assert np.array_equal(load_image(tmp_path / f"out{prediction_suffix(path)}", 2 if flat else 3), array)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii.gz", np.ones((4, 5, 6), np.complex64))
    with pytest.raises(UserError, match="complex numbers: store its magnitude"):
        load_image(path, 3)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.nii").symlink_to("gone.nii")
    assert list_images(tmp_path) == [tmp_path / "a.nii"]
    with pytest.raises(UserError, match="is missing"):
        load_image(tmp_path / "a.nii", 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_grey_pictures_stored_in_colour_are_one_channel(tmp_path: Path, mode: str) -> None:
    pixels = RNG.integers(0, 255, (6, 8), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).convert(mode).save(path)
    assert np.array_equal(LoadCased(["image"], 2, 1, {"a": 1})({"image": str(path)})["image"], pixels[None])
    assert LoadCased(["image"], 2, 3, {"a": 1})({"image": str(path)})["image"].shape == (3, 6, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_lie_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    shown = np.zeros((16, 24), np.uint8)
    shown[:8, :8] = 255
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    picture = Image.fromarray(shown)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = picture.transpose(turned[orientation]) if orientation in turned else picture
    stored.save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png", 2)
    assert read_header(tmp_path / "a.png") == (list(image.shape[1:]), None, 1)
    if orientation in (1, *turned):
        assert np.array_equal(image[0], shown)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_in_an_image_zero_is_black(tmp_path: Path, kind: type) -> None:
    pixels = RNG.integers(0, 200, (16, 24)).astype(kind)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="miniswhite")
    assert np.array_equal(load_image(path, 2)[0], np.iinfo(kind).max - pixels)
    assert np.array_equal(load_image(path, 2, label=True)[0], pixels)
    white_is_zero = {TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 0}
    Image.fromarray(pixels).save(tmp_path / "b.tif", compression="tiff_lzw", tiffinfo=white_is_zero)
    inverted = kind is np.uint8  # by Pillow, when it writes
    assert np.array_equal(load_image(tmp_path / "b.tif", 2)[0], pixels if inverted else np.iinfo(kind).max - pixels)


@pytest.mark.parametrize(
    ("stored", "values", "image", "label"),
    [
        (np.uint8, [0, 255], torch.int16, torch.uint8),
        (np.int16, [-1024, 3000], torch.int16, torch.int16),
        (np.uint16, [0, 4095], torch.int16, torch.int16),
        (np.uint16, [0, 65535], torch.float32, torch.float32),
        (np.int32, [0, 12], torch.int16, torch.uint8),
        (np.float32, [0, 1], torch.float32, torch.float32),
    ],
)
def test_a_volume_is_loaded_in_the_smallest_type(
    stored: type, values: list[int], image: torch.dtype, label: torch.dtype, tmp_path: Path
) -> None:
    array = np.resize(np.array(values, stored), (3, 4, 6))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    for is_label, dtype in ((False, image), (True, label)):
        loaded = load_image(tmp_path / "a.nii.gz", 3, is_label)
        assert loaded.dtype == dtype and np.array_equal(loaded[0].numpy(), array) and loaded.is_contiguous()
