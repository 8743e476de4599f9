"""The demo in parts, with made-up segmentations, and as a whole with the shipped weights where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image

from scripts import demo
from scripts.common.errors import UserError

BUNDLE = Path(demo.__file__).parents[1]


@pytest.fixture(scope="module")
def template() -> nib.Nifti1Image:
    return demo.load_template()


def fake_segmentation(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """A block of 10 x 20 x 8 voxels in the middle: the front half anterior (1), the other posterior (2)."""
    labels = np.zeros(image.shape, dtype=np.uint8)
    x, y, z = (size // 2 for size in image.shape)
    labels[x - 5 : x + 5, y - 10 : y, z - 4 : z + 4] = 2
    labels[x - 5 : x + 5, y : y + 10, z - 4 : z + 4] = 1
    return nib.Nifti1Image(labels, image.affine)


def test_crop_keeps_world_coordinates() -> None:
    affine = np.diag([1.5, 2.0, 0.5, 1.0])
    affine[:3, 3] = (-20, -30, -4)
    image = nib.Nifti1Image(np.random.default_rng(0).random((30, 31, 32), dtype=np.float32), affine)
    crop = demo.crop_box(image, ((-14, -10, -1), (1, 10, 6)))
    assert crop.shape == (11, 11, 15)
    np.testing.assert_allclose(apply_affine(crop.affine, (0, 0, 0)), (-14, -10, -1))
    np.testing.assert_allclose(apply_affine(crop.affine, (10, 10, 14)), (1, 10, 6))
    np.testing.assert_array_equal(np.asarray(crop.dataobj), np.asarray(image.dataobj)[4:15, 10:21, 6:21])


@pytest.mark.parametrize("box", [((-21, -10, -1), (1, 10, 6)), ((-14, -10, -1), (1, 10, 60)), ((5, 0, 0), (1, 1, 1))])
def test_crop_refuses_a_box_outside_the_image(box: demo.Box) -> None:
    affine = np.eye(4)
    affine[:3, 3] = -20
    with pytest.raises(ValueError, match="not inside the image"):
        demo.crop_box(nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), affine), box)


def test_crop_refuses_other_axes() -> None:
    image = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="expected axes RAS, got LPS"):
        demo.crop_box(image, ((0, 0, 0), (1, 1, 1)))


def test_inputs_are_mirror_images_on_their_own_sides(template: nib.Nifti1Image, tmp_path: Path) -> None:
    crops = {side: nib.load(path) for side, path in demo.write_inputs(template, tmp_path).items()}
    assert {crop.shape for crop in crops.values()} == {(35, 50, 36)}
    centres = {s: apply_affine(crop.affine, np.array(crop.shape) / 2)[0] for s, crop in crops.items()}
    assert centres["left"] < -20 and centres["right"] > 20  # RAS: x grows towards the right
    # The template is symmetric, so a box that missed its mirror image by one voxel would show here.
    right, left = (crops[side].get_fdata() for side in ("right", "left"))
    np.testing.assert_array_equal(right, left[::-1])
    # No cropped voxel may be shifted against the template.
    at = np.rint(apply_affine(np.linalg.inv(template.affine), apply_affine(crops["left"].affine, (3, 5, 7))))
    assert left[3, 5, 7] == template.get_fdata()[tuple(at.astype(int))]


@pytest.mark.parametrize(
    "file", ["hippocampus_overlay.png", "input/hippocampus_left.nii.gz", "prediction/hippocampus_left.nii.gz"]
)
def test_files_of_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "mine.nii.gz")
    (tmp_path / "mine.nii.gz").rename(tmp_path / file)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(demo, "run_inference", lambda *_: pytest.fail("predicted"))
    with pytest.raises(UserError, match=f"{file} would be replaced"):
        demo.main(["--output_dir", str(tmp_path)])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_the_demo_may_be_run_again(template: nib.Nifti1Image, tmp_path: Path) -> None:
    assert demo.write_inputs(template, tmp_path) == demo.write_inputs(template, tmp_path)


def test_volumes_count_the_voxel_size() -> None:
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[:2, :5, :5] = 1
    labels[5:, :2, :2] = 2
    affine = np.diag([2.0, -1.0, 0.5, 1.0]) @ np.array(
        [[0, 1, 0, 3], [1, 0, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1.0]]
    )  # swapped and flipped axes do not change a volume
    assert demo.volumes_ml(nib.Nifti1Image(labels, affine)) == pytest.approx({1: 0.050, 2: 0.020})


def test_table_sums_labels_and_sides() -> None:
    table = demo.volume_table({"right": {1: 1.0, 2: 2.0}, "left": {1: 0.5, 2: 0.25}})
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[2:]}
    assert rows == {
        "anterior": ["1.00", "0.50", "1.50"],
        "posterior": ["2.00", "0.25", "2.25"],
        "whole": ["3.00", "0.75", "3.75"],
    }


def test_place_back_is_the_inverse_of_crop(template: nib.Nifti1Image) -> None:
    crops = {side: demo.crop_box(template, box) for side, box in demo.hippocampus_boxes().items()}
    segmentations = {side: fake_segmentation(crop) for side, crop in crops.items()}
    both = demo.place_back(segmentations, template)
    for side, box in demo.hippocampus_boxes().items():
        again = demo.crop_box(both, box)
        np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(segmentations[side].dataobj))
    assert (np.asarray(both.dataobj) > 0).sum() == 2 * 10 * 20 * 8


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "wrote no"),
        (np.zeros((4, 5, 6)), "holds no hippocampus"),
        (np.ones((4, 5, 5)), "not lie on the grid"),
    ],
)
def test_bad_prediction_is_named(labels: np.ndarray | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prediction.nii.gz"
    if labels is not None:
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), path)
    with pytest.raises(UserError, match=message) as error:
        demo.load_prediction(path, like=nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)))
    assert str(path) in str(error.value)


def test_without_nilearn_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)  # import then raises ImportError
    with pytest.raises(UserError, match="pip install nilearn"):
        demo.load_template()


def test_failed_inference_is_an_error(tmp_path: Path) -> None:
    """An empty bundle folder: the real command runs and fails."""
    with pytest.raises(UserError, match="inference ended with status"):
        demo.run_inference(tmp_path, tmp_path, tmp_path)


def test_demo_writes_table_and_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_inference(bundle_root: Path, input_dir: Path, prediction_dir: Path) -> None:
        prediction_dir.mkdir()
        for path in input_dir.iterdir():
            nib.save(fake_segmentation(nib.load(path)), prediction_dir / path.name)

    monkeypatch.setattr(demo, "run_inference", fake_inference)
    demo.main(["--output_dir", str(tmp_path)])
    assert "whole           1.60    1.60    3.20" in capsys.readouterr().out
    with Image.open(tmp_path / "hippocampus_overlay.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 1000
    red, _, blue = np.moveaxis(pixels, 2, 0)
    assert (red - blue > 60).sum() > 5000  # anterior, orange
    assert (blue - red > 60).sum() > 5000  # posterior, blue


@pytest.mark.slow
@pytest.mark.skipif(not (BUNDLE / "models/model.pt").is_file(), reason="models/model.pt is not here")
def test_demo_with_the_shipped_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.demo", "--output_dir", str(tmp_path)]
    subprocess.run(command, cwd=BUNDLE, check=True, timeout=500)
    sides = ("right", "left")
    predictions = {side: nib.load(tmp_path / f"prediction/hippocampus_{side}.nii.gz") for side in sides}
    wholes = {side: sum(demo.volumes_ml(prediction).values()) for side, prediction in predictions.items()}
    assert all(1.5 < ml < 6 for ml in wholes.values()), wholes  # an adult hippocampus
    assert wholes["right"] == pytest.approx(wholes["left"], rel=0.15)  # the template is symmetric
