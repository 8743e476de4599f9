"""Preprocessing that can be undone: crop, orientation, intensity, spacing and label indices."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from monai.data import MetaTensor
from monai.transforms import Compose
from PIL import Image

from scripts.common.errors import UserError, find_user_error
from scripts.data.normalization import Normalized
from scripts.data.transforms import CropNonzerod, LabelIndexd, Preparation
from scripts.postprocessing.label_maps import to_label_map

LABELS = {"a": 1}


def ball(shape: tuple[int, ...], radius: float = 0.4) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    return ((grid**2).sum(0) < radius).astype(np.float32)


def blob(shape: tuple[int, ...]) -> np.ndarray:
    """A smooth hill that is off the centre, so that a shift or a flip would show; nowhere 0."""
    axes = [np.linspace(-1, 1, size) - shift for size, shift in zip(shape, (0.2, -0.1, 0.3), strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return (np.exp(-(grid**2).sum(0) / 0.5) + 0.01).astype(np.float32)


def affine_of(zooms: tuple[float, ...], flips: Any = (1, 1, 1), order: Any = (0, 1, 2), angle: float = 0) -> np.ndarray:
    affine = np.eye(4)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ np.eye(3)[list(order)] @ np.diag(np.multiply(flips, zooms))
    affine[:3, 3] = (12, -34, 5)
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def transforms(*keys: str, labels: dict[str, int] = LABELS, **options: Any) -> Compose:
    return Preparation(3, 1, labels, **options).transforms(*keys)


def there_and_back(path: Path, array: np.ndarray, affine: np.ndarray, labels: Any = None, **options: Any) -> np.ndarray:
    """Preprocess an image whose bright part is the object, threshold it there, bring that back as logits."""
    labels = labels or LABELS
    transform = transforms("image", labels=labels, **options)
    data = transform({"image": save(path, array, affine)})
    middle = (data["image"].min() + data["image"].max()) / 2
    inside = MetaTensor(data["image"] - middle, meta=data["image"].meta)
    data["pred"] = MetaTensor(torch.cat([-inside, inside]), meta=data["image"].meta)
    result = Compose(to_label_map(transform, labels))(data)["pred"]
    assert torch.allclose(result.affine, torch.from_numpy(affine))
    return result[0].numpy()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(16, 26)] * 3),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    order=st.permutations([0, 1, 2]),
    zooms=st.tuples(*[st.sampled_from([0.7, 1.0, 1.6])] * 3),
    angle=st.sampled_from([0.0, 0.2]),
)
def test_predictions_come_back_to_the_original_grid(
    tmp_path: Path,
    shape: tuple[int, ...],
    flips: tuple[int, ...],
    order: list[int],
    zooms: tuple[float, ...],
    angle: float,
) -> None:
    affine = affine_of(zooms, flips, order, angle)
    smooth = blob(shape)  # as logits are
    array = smooth > (smooth.min() + smooth.max()) / 2
    for spacing, crop, lowest in ((None, False, 1.0), (None, True, 1.0), ([1.0, 1.0, 1.0], True, 0.95)):
        back = there_and_back(tmp_path / "image.nii", smooth, affine, spacing=spacing, crop_nonzero=crop)
        assert back.shape == shape
        assert 2 * (back * array).sum() / (back.sum() + array.sum()) >= lowest


@pytest.mark.parametrize("zooms", [(0.7, 0.7, 5.0), (5.0, 0.8, 0.7)])
def test_thick_slices_stay_as_they_are(tmp_path: Path, zooms: tuple[float, ...]) -> None:
    """The coarse axis is resampled by nearest slices: coming back, each slice finds its own."""
    thick = int(np.argmax(zooms))
    shape = [30, 30, 30]
    shape[thick] = 6
    array = np.zeros(shape, np.float32)
    array[tuple(3 if axis == thick else slice(8, 20) for axis in range(3))] = 1
    back = there_and_back(tmp_path / "a.nii", array, affine_of(zooms), spacing=[0.7, 0.7, 0.7])
    assert np.array_equal(back.any(axis=tuple(set(range(3)) - {thick})), np.arange(6) == 3)
    assert 2 * (back * array).sum() / (back.sum() + array.sum()) > 0.9


def test_label_values_come_back(tmp_path: Path) -> None:
    back = there_and_back(tmp_path / "a.nii", ball((8, 9, 10)), np.eye(4), {"tumour": 5}, spacing=None)
    assert set(np.unique(back).tolist()) == {0, 5}


def test_what_was_cropped_is_background_with_certainty(tmp_path: Path) -> None:
    array = np.zeros((12, 12, 12), np.float32)
    array[3:9, 4:10, 5:11] = np.random.default_rng(0).uniform(1, 2, (6, 6, 6))
    transform = transforms("image", crop_nonzero=True)
    data = transform({"image": save(tmp_path / "a.nii", array, affine_of((1, 1, 1), (-1, 1, -1)))})
    assert data["image"].shape == (1, 6, 6, 6)
    logits = torch.cat([-torch.ones(1, 6, 6, 6), torch.zeros(1, 6, 6, 6)])  # everything is foreground
    data["pred"] = MetaTensor(logits, meta=data["image"].meta)
    back = Compose(to_label_map(transform, LABELS, probabilities_key="p"))(data)
    assert np.array_equal(back["pred"][0].numpy(), array > 0)
    assert (back["p"][0].numpy()[array == 0] == 1).all()


def test_label_and_image_stay_together(tmp_path: Path) -> None:
    """Image and label go through crop, orientation and spacing alike; values become indices, ignored ones -1."""
    label = np.zeros((20, 24, 18), np.uint8)
    label[4:12, 6:16, 5:10], label[12:16, 6:16, 5:10], label[4:8, 6:10, 10:14] = 1, 5, 255
    image = label.astype(np.float32) * 1.0
    image[image == 255] = 9
    affine = affine_of((1.0, 1.2, 0.8), (-1, 1, -1), (1, 0, 2), 0.15)
    case = {"image": save(tmp_path / "i.nii", image, affine), "label": save(tmp_path / "l.nii", label, affine)}
    options: dict[str, Any] = {"labels": {"b": 5, "a": 1}, "ignore_label": 255, "normalization": ["none"]}
    steps = transforms("image", "label", spacing=[1, 1, 1], crop_nonzero=True, **options)
    data = steps(case)
    image, label = (data[key][0].numpy() for key in ("image", "label"))
    assert image.shape == label.shape and set(np.unique(label).tolist()) == {-1, 0, 1, 2}
    for index, value in ((1, 1), (2, 5), (-1, 9)):
        assert abs(np.median(image[label == index]) - value) < 0.3
    assert torch.allclose(data["image"].affine, data["label"].affine)


def test_spacing_is_reached_and_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", ball((20, 20, 10)), np.diag([1, 1, 2, 1]))
    image = transforms("image", spacing=[2, 2, 2])({"image": path})["image"]
    assert image.shape == (1, 10, 10, 10)
    assert np.allclose(np.abs(np.diag(image.affine)[:3]), 2)
    assert abs(float(image.mean())) < 0.1 and float(image.std()) == pytest.approx(1, abs=0.1)
    for bad in ([1, 1], [1, 0, 1], "soon", 1, [1, 1, "1"], [1, 1, float("nan")], [1, 1, True]):
        with pytest.raises(UserError, match="spacing must be 3 positive numbers"):
            Preparation(3, 1, LABELS, spacing=bad)
    kept = Preparation(2, 1, LABELS, slice_axis=2, spacing=[2, 2, None]).transforms("image")({"image": path})["image"]
    assert kept.shape == (1, 10, 10, 10)  # the third axis keeps its 2 mm
    same = transforms("image", spacing=[1, 1, None])({"image": path})["image"]
    assert same.shape == (1, 20, 20, 10)


@pytest.mark.parametrize(
    ("header", "spacing", "said"),
    [
        ((1e-6, 1, 1), [1, 1, 1], "over 100 times another"),
        ((1e6, 1, 1), [1, 1, 1], "over 100 times another"),
        ((1, 1, 1), [1e-6, 1e-6, 1e-6], "over 100 times another"),
        ((1, 1, 1), [0.011, 0.011, 0.011], r"1818 x 1818 x 909 voxels take 36 GB, this machine has 16"),
    ],
)
def test_a_spacing_that_no_memory_holds(
    tmp_path: Path, header: tuple, spacing: list, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before it is allocated, with the name of the file."""
    path = save(tmp_path / "a.nii.gz", ball((20, 20, 10)), np.diag([*header, 1]))
    monkeypatch.setattr("scripts.data.resampling._memory", lambda: 16 * 10**9)
    with pytest.raises(RuntimeError) as caught:
        transforms("image", spacing=spacing)({"image": path})
    assert re.search(rf"a\.nii\.gz has 20 x 20 x 10 voxels .*{said}", str(find_user_error(caught.value)))


@pytest.mark.parametrize("change", [{"lower": 5}, {"std": 0}, {"mean": "a"}, {"upper": float("nan")}])
def test_ct_needs_a_range(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="lower below upper and std above 0"):
        transforms("image", normalization=[{"ct": {"lower": 0, "upper": 5, "mean": 2, "std": 1} | change}])


def test_normalization_is_a_list() -> None:
    for one in ("zscore", {"ct": {}}, 3):
        with pytest.raises(UserError, match="normalization must be a list, a scheme a channel"):
            transforms("image", normalization=one)


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preparation = Preparation(2, 1, LABELS, spacing="null", normalization=["rgb"])
    result = preparation.transforms("image")({"image": str(tmp_path / "a.png")})["image"]
    assert torch.allclose(result.as_tensor()[0], torch.from_numpy(pixels) / 255)


def test_words_of_a_command_line_are_typed_once(tmp_path: Path) -> None:
    typed = Preparation(2, 1, LABELS, slice_axis="null", rows_first="false", crop_nonzero="true", ignore_label="null")
    assert typed == Preparation(2, 1, LABELS, rows_first=False, crop_nonzero=True)
    assert typed.facts()["slice_axis"] is None and typed.facts()["crop_nonzero"] is True


def test_a_label_may_stay_as_its_file_has_it(tmp_path: Path) -> None:
    """Which is how evaluation scores: on the file's grid, with its values."""
    label = ball((20, 20, 10)).astype(np.uint8) * 5
    paths = {key: save(tmp_path / f"{key}.nii", label, np.diag([1, 1, 2, 1])) for key in ("image", "label")}
    preparation = Preparation(3, 1, {"a": 5}, spacing=[2, 2, 2])
    case = preparation.transforms("image", as_filed=["label"])(paths)
    assert case["image"].shape == (1, 10, 10, 10) and np.array_equal(case["label"][0], label)


def test_label_indices() -> None:
    label = MetaTensor(torch.tensor([[[0.0, 5, 1, 7]]]))
    mapped = LabelIndexd(["label"], {"b": 5, "a": 1}, ignore_label=7)({"label": label})["label"]
    assert mapped.tolist() == [[[0, 2, 1, -1]]]


def test_crop_finds_what_is_nonzero_in_any_channel() -> None:
    image = MetaTensor(torch.zeros(2, 8, 9), affine=torch.eye(4, dtype=torch.float64))
    image[0, 2:4, 3], image[1, 5, 6] = 1, -2
    cropped = CropNonzerod(["image"])({"image": image})["image"]
    assert cropped.shape == (2, 4, 4) and torch.equal(cropped.affine[:2, -1], torch.tensor([2.0, 3.0]).double())
    empty = CropNonzerod(["image"])({"image": MetaTensor(torch.zeros(1, 3, 4), affine=torch.eye(4).double())})
    assert empty["image"].shape == (1, 3, 4)


def test_image_dims() -> None:
    planar = Preparation(2, 1, LABELS)
    assert (planar.image_dims, replace(planar, slice_axis=0).image_dims) == (2, 3)
    assert Preparation(3, 1, LABELS).image_dims == 3


def test_rgb_is_of_8_bits() -> None:
    with pytest.raises(UserError, match='normalization "rgb" divides by 255, but an image holds 4000'):
        Normalized(["image"], ["rgb"])({"image": torch.full((1, 2, 2), 4000.0)})


@pytest.mark.parametrize(
    "scheme", ["zscore", "zscore_nonzero", "none", {"ct": dict(lower=-90, upper=99.5, mean=3, std=7)}]
)
def test_small_integers_are_normalised_as_the_floats_that_they_are(scheme: Any) -> None:
    values = torch.randint(-100, 100, (2, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    turned = values.short().permute(0, 3, 1, 2)
    before, floats = turned.clone(), turned.float()
    (first,), (second,) = (Normalized(["image"], [scheme] * 2)({"image": image}).values() for image in (turned, floats))
    assert first.dtype == torch.float32 and torch.equal(first, second) and torch.equal(turned, before)
    assert torch.equal(floats, before.float()), "the image is left alone"
    if scheme == "zscore_nonzero":
        voxels = floats[0][floats[0] != 0]
        expected = (floats[0] - voxels.mean()) / voxels.std(correction=0)
        assert torch.equal(first[0], expected.where(floats[0] != 0, torch.tensor(0.0)))
