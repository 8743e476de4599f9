"""2D images of every format reach a network alike, and predictions go back to their file's own axes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.bundle import ConfigParser
from PIL import Image

from scripts.common.errors import UserError
from scripts.data.prepared import PreparedDataset
from scripts.data.transforms import Preparation
from scripts.images.cases import LoadCased, load_image, save_label_map, save_probabilities
from scripts.images.files import prediction_suffix
from scripts.images.headers import read_header
from scripts.images.pairs import Pair, physical_spacing, read_label_map, read_pair
from scripts.images.task import Task
from scripts.planning.fingerprint import fingerprint
from scripts.planning.integrity import check_dataset
from scripts.planning.make_plan import make_plan
from scripts.planning.memory import load_memory_table
from scripts.planning.plan import Wishes

CONFIGS = Path(__file__).parents[2] / "bundle/configs"
RNG = np.random.default_rng(0)
ROWS, COLUMNS, HEIGHT, WIDTH = 12, 20, 0.5, 0.8  # pixels, and the size of one in mm
PIXELS = RNG.integers(0, 255, (ROWS, COLUMNS), np.uint8)


def write_nifti(path: Path, pixels: np.ndarray, one_slice: bool = False) -> Path:
    """As converters do: the first axis runs along a row."""
    array = pixels.T[..., None] if one_slice else pixels.T
    nib.save(nib.Nifti1Image(array, np.diag([WIDTH, HEIGHT, 1, 1])), path)
    return path


def write_itk(path: Path, pixels: np.ndarray, one_slice: bool = False) -> Path:
    """SimpleITK itself takes arrays as (rows, columns)."""
    image = sitk.GetImageFromArray(pixels[None] if one_slice else pixels)
    image.SetSpacing((WIDTH, HEIGHT, 1)[: 3 if one_slice else 2])
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def write_picture(path: Path, pixels: np.ndarray, one_slice: bool = False) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def read_nifti(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).squeeze().T


def read_itk(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).squeeze()


def read_picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


FORMATS = {
    ".png": (write_picture, read_picture),
    ".tif": (write_picture, read_picture),
    ".nii.gz": (write_nifti, read_nifti),
    ".nii": (write_nifti, read_nifti),
    ".mha": (write_itk, read_itk),
    ".mhd": (write_itk, read_itk),
    ".nrrd": (write_itk, read_itk),
    ".nhdr": (write_itk, read_itk),
}


@pytest.mark.parametrize("one_slice", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_one_picture_in_every_format(tmp_path: Path, ending: str, one_slice: bool) -> None:
    write, read = FORMATS[ending]
    path = write(tmp_path / f"a{ending}", PIXELS, one_slice)
    image = LoadCased(["image"], 2, 1, {"a": 1})({"image": str(path)})["image"]
    assert np.array_equal(image, PIXELS[None])
    if ending not in (".png", ".tif"):
        assert physical_spacing(image) == pytest.approx([HEIGHT, WIDTH])

    labels = RNG.integers(0, 3, (ROWS, COLUMNS))
    out = tmp_path / "out" / f"a{prediction_suffix(path)}"
    out.parent.mkdir()
    save_label_map(out, labels, like=path)
    assert np.array_equal(read(out), labels)
    assert np.array_equal(read_label_map(out, [1, 2], image_dims=2).array, labels)
    if ending in (".nii", ".nii.gz"):
        assert (
            np.array_equal(nib.load(out).affine, nib.load(path).affine) and nib.load(out).shape == nib.load(path).shape
        )
    elif ending not in (".png", ".tif"):
        theirs, ours = sitk.ReadImage(str(path)), sitk.ReadImage(str(out))
        assert theirs.GetSize() == ours.GetSize() and theirs.GetSpacing() == ours.GetSpacing()
        assert theirs.GetOrigin() == ours.GetOrigin() and theirs.GetDirection() == ours.GetDirection()


@pytest.mark.parametrize("one_slice", [False, True])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_probabilities_too(tmp_path: Path, ending: str, one_slice: bool) -> None:
    path = FORMATS[ending][0](tmp_path / f"a{ending}", PIXELS, one_slice)
    probabilities = RNG.random((3, ROWS, COLUMNS)).astype(np.float32)
    save_probabilities(tmp_path / f"p{ending}", probabilities, like=path)
    if ending == ".nii.gz":
        read = np.moveaxis(np.asarray(nib.load(tmp_path / f"p{ending}").dataobj).squeeze(), -1, 0).swapaxes(1, 2)
    else:
        read = np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"p{ending}"))).squeeze(), -1, 0)
    assert np.allclose(read, probabilities)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_along_any_axis(tmp_path: Path, axis: int) -> None:
    volume = RNG.integers(0, 255, np.insert([7, 9], axis, 1)).astype(np.uint8)
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.diag([1, 2, 3, 1])), path)
    image = load_image(path, 2)
    assert np.array_equal(image[0], volume.squeeze(axis).T)
    assert physical_spacing(image) == pytest.approx(np.delete([1, 2, 3], axis)[::-1])
    save_label_map(tmp_path / "out.nii.gz", image[0].numpy().astype(int), like=path)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), volume)


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    labels = RNG.integers(0, 2, (ROWS, COLUMNS), np.uint8)
    image = write_picture(tmp_path / "a.png", PIXELS)
    label = write_nifti(tmp_path / "a.nii.gz", labels)
    case = LoadCased(["image", "label"], 2, 1, {"a": 1})({"image": str(image), "label": str(label)})
    assert np.array_equal(case["image"], PIXELS[None]) and np.array_equal(case["label"], labels[None])
    reference = write_picture(tmp_path / "b.png", labels)
    prediction, reference = read_pair(Pair("a", label, reference), Task({"a": 1}, image_dims=2))
    assert np.array_equal(prediction.array, reference.array) and prediction.spacing == pytest.approx([HEIGHT, WIDTH])


def write_dataset(root: Path, ending: str, write: Callable, one_slice: bool = False) -> Path:
    cases = [{"image": f"imagesTr/{i}{ending}", "label": f"labelsTr/{i}{ending}"} for i in range(2)]
    for index, case in enumerate(cases):
        for key, pixels in (("image", PIXELS + index), ("label", (PIXELS > 99).astype(np.uint8))):
            (root / case[key]).parent.mkdir(parents=True, exist_ok=True)
            write(root / case[key], pixels, one_slice)
    content = {"modality": {"0": "X"}, "labels": {"0": "background", "1": "a"}, "training": cases}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("one_slice", [False, True])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_planning_counts_rows_first(tmp_path: Path, ending: str, one_slice: bool) -> None:
    facts = fingerprint(check_dataset(write_dataset(tmp_path, ending, FORMATS[ending][0], one_slice), workers=0))
    assert facts["image_dims"] == 2 and facts["per_case"][0]["shape"] == [ROWS, COLUMNS]
    assert facts["median_spacing"] == pytest.approx([HEIGHT, WIDTH])
    if not one_slice:
        shape, spacing, _ = read_header(tmp_path / f"imagesTr/0{ending}")
        assert shape == [ROWS, COLUMNS] and spacing == pytest.approx([HEIGHT, WIDTH])


def test_a_plan_from_before_is_asked_to_be_made_again(tmp_path: Path) -> None:
    volume, picture = write_nifti(tmp_path / "a.nii.gz", PIXELS), write_picture(tmp_path / "a.png", PIXELS)
    before = LoadCased(["image"], 2, 1, {"a": 1}, rows_first=False)
    assert before({"image": str(picture)})["image"].shape == (1, ROWS, COLUMNS)
    with pytest.raises(UserError, match=r"this task was planned .*rows_first.* plan it again") as caught:
        before({"image": str(volume)})
    assert "\n" not in str(caught.value)
    nib.save(nib.Nifti1Image(RNG.normal(size=(4, 5, 6)), np.eye(4)), tmp_path / "volume.nii")
    assert LoadCased(["image"], 3, 1, {"a": 1}, rows_first=False)({"image": str(tmp_path / "volume.nii")})


def test_prepared_cases_of_before_are_not_taken(tmp_path: Path) -> None:
    """Nor are those of pictures and volumes made again, which are the same."""

    def folder(file: str, dims: int, rows_first: bool, slice_axis: int | None = None) -> Path:
        preparation = Preparation(dims, 1, {"a": 1}, slice_axis=slice_axis, rows_first=rows_first)
        return PreparedDataset([{"image": file, "label": file}], None, None, tmp_path, preparation).folder

    assert folder("a.nii.gz", 2, True) != folder("a.nii.gz", 2, False)
    assert folder("a.png", 2, True) == folder("a.png", 2, False)
    for other in ((3, None), (2, 2)):
        assert folder("a.nii.gz", other[0], True, other[1]) == folder("a.nii.gz", other[0], False, other[1])


def test_plans_say_that_rows_come_first(tmp_path: Path) -> None:
    facts = fingerprint(check_dataset(write_dataset(tmp_path, ".nii.gz", write_nifti), workers=0))
    overlay = make_plan(facts, "flat", str(tmp_path), load_memory_table(), Wishes()).overlay
    assert overlay["rows_first"] is True and overlay["spacing"] == pytest.approx([HEIGHT, WIDTH])


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_configs_take_a_plan_without_it_for_one_of_before(config: str) -> None:
    def rows_first(**overrides: object) -> bool:
        content = ConfigParser.load_config_file(CONFIGS / config) | {"task": {}} | overrides
        assert content["preparation"]["rows_first"] == "@rows_first"
        return ConfigParser(content).get_parsed_content("rows_first")

    assert rows_first() is False
    assert rows_first(rows_first=True) is True
    assert rows_first(task=json.loads((CONFIGS / "tasks/lung_xray.json").read_text())) is True
