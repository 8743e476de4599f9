"""Preprocessing that can be undone, and nnU-Net's augmentation."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from monai.data import MetaTensor
from monai.transforms import Compose

from scripts.data.images import LoadCased
from scripts.data.transforms import RandContrastd, augmentation, check_patch_size, preprocessing
from scripts.errors import UserError
from scripts.postprocessing import to_label_map

LABELS = {"a": 1}


def ball(shape: tuple[int, ...]) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    return ((grid**2).sum(0) < 0.4).astype(np.float32)


def there_and_back(path: Path, array: np.ndarray, affine: np.ndarray, spacing: list[float] | None) -> np.ndarray:
    """Preprocess an image whose bright part is the object, threshold it there, bring that back as logits."""
    nib.save(nib.Nifti1Image(array, affine), path)
    load = LoadCased(["image"], 3, 1, LABELS)
    transform = Compose([load, *preprocessing(["image"], 3, spacing)])
    data = transform({"image": str(path)})
    middle = (data["image"].min() + data["image"].max()) / 2
    inside = MetaTensor(data["image"] - middle, meta=data["image"].meta)
    data["pred"] = MetaTensor(torch.cat([-inside, inside]), meta=data["image"].meta)
    return Compose(to_label_map(transform, LABELS))(data)["pred"][0].numpy()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    affine = np.eye(4)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ np.eye(3)[order] @ np.diag(np.multiply(flips, zooms))
    array = ball(shape)
    for spacing, lowest in ((None, 1.0), ([1.0, 1.0, 1.0], 0.9)):
        back = there_and_back(tmp_path / "image.nii.gz", array, affine, spacing)
        assert back.shape == shape
        assert 2 * (back * array).sum() / (back.sum() + array.sum()) >= lowest


def test_spacing_is_reached_and_checked(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ball((20, 20, 10)), np.diag([1, 1, 2, 1])), tmp_path / "a.nii.gz")
    load = LoadCased(["image"], 3, 1, LABELS)
    image = Compose([load, *preprocessing(["image"], 3, [2, 2, 2])])({"image": str(tmp_path / "a.nii.gz")})["image"]
    assert image.shape == (1, 10, 10, 10)
    assert abs(float(image.mean())) < 1e-4 and float(image.std()) == pytest.approx(1, abs=0.01)
    for bad in ([1, 1], [1, 0, 1], "soon"):
        with pytest.raises(UserError, match="spacing must be 3 positive numbers"):
            preprocessing(["image"], 3, bad)


@pytest.mark.parametrize("shape", [(20, 30, 12), (40, 16, 24), (33, 40), (70, 50)])
def test_augmented_patches_have_their_size_and_labels(shape: tuple[int, ...]) -> None:
    dims, patch = len(shape), [16, 24, 16][: len(shape)]
    transform = Compose(augmentation(dims, patch, list(range(dims))))
    transform.set_random_state(0)
    label = torch.from_numpy(ball(shape))[None]
    for _ in range(15):
        (item,) = transform({"image": torch.randn(1, *shape) + label, "label": label})
        assert item["image"].shape == item["label"].shape == (1, *patch)
        assert set(item["label"].unique().tolist()) <= {0.0, 1.0} and item["image"].isfinite().all()


def test_a_third_of_the_patches_hold_foreground() -> None:
    label = torch.zeros(1, 200, 200)
    label[0, 150:152, 40:42] = 1
    transform = Compose(augmentation(2, [16, 16], [])[:2])  # padding and cropping
    transform.set_random_state(1)
    hits = sum(transform({"image": label, "label": label})[0]["label"].any().item() for _ in range(300))
    assert 80 <= hits <= 125  # a third, plus the few of the others that meet it


def test_no_mirror_axes_no_mirroring() -> None:
    names = [type(transform).__name__ for transform in augmentation(3, [8, 8, 8], [])]
    assert "RandFlipd" not in names
    assert [type(t).__name__ for t in augmentation(3, [8, 8, 8], [0, 2])].count("RandFlipd") == 2


def test_contrast_keeps_mean_and_range() -> None:
    image = torch.rand(2, 30, 30)
    transform = RandContrastd(["image"], prob=1, range=(0.75, 0.75))
    changed = transform({"image": image})["image"]
    assert torch.allclose(changed.mean((1, 2)), image.mean((1, 2)), atol=1e-5)
    assert torch.allclose(changed.std((1, 2)), 0.75 * image.std((1, 2)), atol=1e-5)
    stretched = RandContrastd(["image"], prob=1, range=(1.25, 1.25))({"image": image})["image"]
    assert stretched.min() >= image.min() and stretched.max() <= image.max()


@pytest.mark.parametrize("bad", [[16, 20, 16], [16, 16], 16, [0, 8, 8]])
def test_patch_sizes_that_the_network_cannot_take(bad: object) -> None:
    check_patch_size([16, 24, 8], 3, 8)
    with pytest.raises(UserError, match="patch_size"):
        check_patch_size(bad, 3, 8)
