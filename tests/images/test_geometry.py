"""Axes and spacings that headers write in unusual ways."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from scripts.common.errors import UserError
from scripts.images.cases import load_image, save_label_map, save_probabilities
from scripts.images.headers import read_header

RNG = np.random.default_rng(0)


def test_negative_spacing_turns_an_axis_round(tmp_path: Path) -> None:
    """Read and written from one geometry: voxel by voxel the prediction lies where the image does."""
    path, array = tmp_path / "a.mha", RNG.integers(0, 99, (2, 3, 4)).astype(np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 2 3", b"ElementSpacing = 1 -2 3"))
    loaded = load_image(path, 3)
    assert np.array_equal(loaded[0], array.transpose())
    assert np.allclose(np.diag(loaded.affine), [-1, 2, 3, 1])  # LPS to RAS, and y turned once more
    assert read_header(path) == ([4, 3, 2], [1.0, 2.0, 3.0], 1)
    save_label_map(tmp_path / "out.mha", loaded[0].numpy(), like=path)
    save_probabilities(tmp_path / "p.mha", RNG.random((2, 4, 3, 2)), like=path)
    for name in ("out.mha", "p.mha"):
        assert np.allclose(load_image(tmp_path / name, 3).affine, loaded.affine)
    theirs, ours = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out.mha"))
    assert np.allclose(theirs.TransformIndexToPhysicalPoint((3, 2, 1)), ours.TransformIndexToPhysicalPoint((3, 2, 1)))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((4, 5, 6, 1, 1), 1),
        ((4, 5, 6, 1, 1, 1, 1), 1),
        ((4, 5, 6, 1, 3), 3),
        ((4, 5, 6, 3, 1), 3),
        ((4, 5, 6, 3, 1, 1), 3),
        ((4, 5, 6, 1, 1, 2), 2),
    ],
)
def test_axes_behind_the_third(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    array = RNG.normal(size=shape).astype(np.float32)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    image = load_image(path, 3)
    assert np.array_equal(image, np.moveaxis(array.reshape(4, 5, 6, channels), -1, 0))
    assert read_header(path) == ([4, 5, 6], [1.0, 1.0, 1.0], channels)
    save_label_map(tmp_path / "out.nii.gz", np.ones((4, 5, 6), int), like=path)
    assert nib.load(tmp_path / "out.nii.gz").shape == (4, 5, 6)


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (6, 5, 4, 1, 1), (6, 5, 4, 3, 1), (6, 5, 4, 1, 3)])
def test_axes_of_metaimage_behind_the_third(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 99, shape[::-1]).astype(np.int16)  # SimpleITK's arrays have the first axis last
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(tmp_path / "a.mha"), useCompression=True)
    expected = array.reshape(-1, 4, 5, 6).transpose(0, 3, 2, 1)
    assert np.array_equal(load_image(tmp_path / "a.mha", 3), expected)
    assert read_header(tmp_path / "a.mha") == ([6, 5, 4], [1.0, 1.0, 1.0], len(expected))


def test_more_than_one_axis_of_channels_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 2, 3), np.float32), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(
        UserError, match=r"a\.nii cannot be read.* 4 x 5 x 6 x 2 x 3: of the axes behind the third only one"
    ):
        load_image(tmp_path / "a.nii", 3)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (4, 5, 1)])
def test_coloured_nifti(tmp_path: Path, shape: tuple[int, ...]) -> None:
    colours = RNG.integers(0, 255, (*shape, 3)).astype(np.uint8)
    stored = np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "a.nii.gz")
    image = load_image(tmp_path / "a.nii.gz", 3 if shape[-1] == 6 else 2)
    rows_first = colours if shape[-1] == 6 else colours.reshape(4, 5, 3).swapaxes(0, 1)
    assert np.array_equal(image, np.moveaxis(rows_first, -1, 0))
    assert read_header(tmp_path / "a.nii.gz")[2] == 3
