"""What is read from an image of any format comes back in that format, on the same grid."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from generators import oblique, write_image
from hypothesis import given, settings
from image_files import picture
from nibabel.affines import apply_affine
from PIL import Image

from scripts.common.errors import UserError
from scripts.images.cases import load_image, save_label_map, save_probabilities
from scripts.images.files import prediction_suffix

RNG = np.random.default_rng(0)
VOLUMES = [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"]

affines = st.builds(
    lambda spacing, degrees, order, flips: oblique(spacing, degrees) @ np.diag([*flips, 1])[[*order, 3]],
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    degrees=st.floats(-80, 80),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)


@settings(max_examples=25, deadline=None)
@given(
    affine=affines,
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    ending=st.sampled_from(VOLUMES),
    channels=st.integers(1, 3),
)
def test_volumes_come_back_on_their_grid(
    tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray, shape: tuple[int, ...], ending: str, channels: int
) -> None:
    folder = tmp_path_factory.mktemp("volume")
    array = RNG.integers(0, 300, (channels, *shape)).astype(np.int16)
    path = write_image(folder / f"image{ending}", array, affine)
    image = load_image(path, 3)
    assert np.array_equal(image.numpy(), array)
    assert np.allclose(image.affine, affine, atol=1e-4)
    out = folder / f"out{prediction_suffix(path)}"
    save_label_map(out, image[0].numpy(), like=path)
    label = load_image(out, 3, label=True)
    assert np.array_equal(label[0].numpy(), array[0])
    corner = np.array(shape) - 1
    assert np.allclose(apply_affine(label.affine, corner), apply_affine(image.affine, corner), atol=1e-4)
    save_probabilities(folder / f"p{prediction_suffix(path)}", RNG.random((2, *shape)), like=path)
    assert load_image(folder / f"p{prediction_suffix(path)}", 3).shape == (2, *shape)


def test_simpleitk_and_nibabel_agree_on_where_voxels_lie(tmp_path: Path) -> None:
    affine = oblique((0.7, 1.1, 3), 20)
    nifti = write_image(tmp_path / "a.nii.gz", RNG.random((1, 4, 5, 6)).astype(np.float32), affine)
    for ending in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.ReadImage(str(nifti)), str(tmp_path / f"a{ending}"))
        image = load_image(tmp_path / f"a{ending}", 3)
        assert np.allclose(image.affine, affine, atol=1e-4) and np.array_equal(image, load_image(nifti, 3))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".tif"])
def test_pictures_of_every_kind_come_back(tmp_path: Path, ending: str) -> None:
    pixels = np.full((3, 20, 30), 90, np.uint8)
    pixels[1, 5:10] = 200
    path = write_image(tmp_path / f"a{ending}", pixels)
    image = load_image(path, 2)
    assert image.shape == (3, 20, 30) and np.abs(image.numpy() - pixels).max() < 40
    out = tmp_path / f"out{prediction_suffix(path)}"
    assert out.suffix == (".tif" if ending == ".tif" else ".png")
    label = RNG.integers(0, 300, (20, 30))
    save_label_map(out, label, like=path)
    assert np.array_equal(load_image(out, 2, label=True)[0], label)


def test_tiff_stacks_have_their_spacing_beside_them(tmp_path: Path) -> None:
    stack = RNG.integers(0, 255, (1, 3, 8, 9), np.uint8)  # three slices look like RGB to tifffile
    path = tmp_path / "cell_0000.tif"
    tifffile.imwrite(path, stack[0], photometric="rgb", planarconfig="separate")
    (tmp_path / "cell.json").write_text('{"spacing": [2.5, 0.4, 0.5]}')
    image = load_image(path, 3)
    assert np.array_equal(image, stack) and np.allclose(np.diag(image.affine), [2.5, 0.4, 0.5, 1])
    (tmp_path / "out").mkdir()
    save_label_map(tmp_path / "out/cell.tif", stack[0], like=path)
    assert (tmp_path / "out/cell.json").read_text() == '{"spacing": [2.5, 0.4, 0.5]}'
    assert np.array_equal(load_image(tmp_path / "out/cell.tif", 3), stack)
    (tmp_path / "cell.json").write_text('{"spacing": [2.5, 0.4, 0]}')
    with pytest.raises(UserError, match=r"cell_0000\.tif cannot be read.*cell\.json must hold three"):
        load_image(path, 3)


def test_compressed_tiff_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"shapes": []}')  # annotations of another program, not ours to read
    pixels = RNG.integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert np.array_equal(load_image(tmp_path / "a.tif", 2), np.moveaxis(pixels, -1, 0))


def test_palettes_alpha_and_16_bits(tmp_path: Path) -> None:
    indices = RNG.integers(0, 3, (6, 8), np.uint8)
    palette = Image.fromarray(indices, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    assert np.array_equal(load_image(tmp_path / "p.png", 2, label=True)[0], indices)
    assert np.array_equal(load_image(tmp_path / "p.png", 2)[0], 255 * (indices == 1))
    assert load_image(picture(tmp_path / "rgba.png", RNG.integers(0, 255, (6, 8, 4), np.uint8)), 2).shape[0] == 3
    deep = RNG.integers(0, 60000, (6, 8)).astype(np.uint16)
    assert np.array_equal(load_image(picture(tmp_path / "deep.png", deep), 2)[0], deep)
    grey = picture(tmp_path / "grey.png", np.repeat(indices[..., None], 3, -1))
    assert np.array_equal(load_image(grey, 2, label=True), indices[None])


@pytest.mark.parametrize("shape", [(5, 6, 1), (1, 5, 6), (5, 1, 6)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".tif"])
def test_one_slice_volumes_are_2d_images_and_come_back_as_volumes(
    tmp_path: Path, shape: tuple[int, ...], ending: str
) -> None:
    path = write_image(tmp_path / f"a{ending}", RNG.integers(0, 9, (1, *shape), np.uint8), np.diag([2, 3, 4, 1]))
    image = load_image(path, 2)
    spacing = [size for size, extent in zip((2, 3, 4), shape) if extent > 1]
    if ending != ".tif":  # there, rows are the last axis
        spacing = spacing[::-1]
    assert image.shape == (1, *((5, 6) if ending == ".tif" else (6, 5))) and load_image(path, 3).shape == (1, *shape)
    assert np.allclose(np.linalg.norm(image.affine[:3, :2], axis=0), spacing)
    save_label_map(tmp_path / f"out{ending}", image[0].numpy(), like=path)
    assert np.array_equal(load_image(tmp_path / f"out{ending}", 3), load_image(path, 3))
