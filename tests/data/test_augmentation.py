"""What each alteration does to a patch, against slower and plainer forms of the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from numpy.random import RandomState
from scipy.ndimage import gaussian_filter1d

from scripts.data.augmentation import (
    RandAlterd,
    RandMirrord,
    augmentation,
    blur,
    brightness,
    contrast,
    gamma,
    low_resolution,
    noise,
)


class Fixed(RandomState):
    """Draws the same number every time, and takes every channel of those that are altered half the time."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:  # type: ignore[override]
        return self.value if size is None else np.full(size, self.value)

    def random_sample(self, size: int | None = None) -> float | np.ndarray:  # type: ignore[override]
        return 0.0 if size is None else np.zeros(size)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(1, 2, (2, 20, 24, 18))).float()


def test_blur_is_scipys(image: torch.Tensor) -> None:
    expected = image.numpy()
    for axis in (1, 3):
        expected = gaussian_filter1d(expected, 0.8, axis, truncate=4)
    blurred = blur(image, Fixed(0.8), axes=[0, 2]).numpy()
    inner = (slice(None), slice(4, -4), slice(None), slice(4, -4))
    assert np.allclose(blurred[inner], expected[inner], atol=1e-5)
    assert torch.allclose(blur(torch.ones(1, 9, 9), Fixed(1.0), axes=[0, 1]), torch.ones(1, 9, 9))


def test_low_resolution_takes_every_second_voxel() -> None:
    ramp = torch.arange(20.0).expand(1, 6, 20).contiguous()
    lowered = low_resolution(ramp, Fixed(0.5), axes=[1])
    assert torch.allclose(lowered[0, 0, 1:-1].diff(), torch.ones(17))  # linear between the voxels that were kept
    impulse = torch.zeros(1, 20)
    impulse[0, 8] = 1
    assert not low_resolution(impulse, Fixed(0.5), axes=[0]).any()  # the nearest voxels are the odd ones
    image = torch.rand(1, 7, 8, 9)
    assert torch.allclose(low_resolution(image, Fixed(1.0), axes=[0, 1, 2]), image, atol=1e-6)


def test_contrast_keeps_mean_and_range(image: torch.Tensor) -> None:
    flat = contrast(image, Fixed(0.75))
    axes = (1, 2, 3)
    assert torch.allclose(flat.mean(axes), image.mean(axes), atol=1e-5)
    assert torch.allclose(flat.std(axes), 0.75 * image.std(axes), atol=1e-5)
    steep = contrast(image, Fixed(1.25))
    assert (steep.amin(axes) >= image.amin(axes)).all() and (steep.amax(axes) <= image.amax(axes)).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_and_deviation(image: torch.Tensor, inverted: bool) -> None:
    before = image.clone()
    curved = gamma(image, Fixed(1.4), inverted=inverted)
    assert torch.equal(image, before)
    axes = (1, 2, 3)
    assert torch.allclose(curved.mean(axes), image.mean(axes), atol=1e-4)
    assert torch.allclose(curved.std(axes), image.std(axes), atol=1e-4)
    for channel, result in zip(image, curved, strict=True):
        assert (result.flatten()[channel.flatten().argsort()].diff() > -1e-5).all()  # a curve: larger stays larger
    assert gamma(torch.ones(1, 4, 4), Fixed(1.4)).isfinite().all()


def test_noise_and_brightness(image: torch.Tensor) -> None:
    noisy = noise(image, Fixed(0.3)) - image
    assert float(noisy.std()) == pytest.approx(0.3, rel=0.05) and abs(float(noisy.mean())) < 0.01
    assert torch.equal(brightness(image, Fixed(0.8)), image * 0.8)


@pytest.mark.parametrize("alter", [brightness, contrast, gamma])
def test_each_channel_is_altered_by_itself(image: torch.Tensor, alter: Callable[..., torch.Tensor]) -> None:
    """Channels of very different intensities, such as CT and PET, would else be squeezed to a constant."""
    channels = torch.stack([image[0], 300 + 100 * image[1]])
    altered = alter(channels, RandomState(1))
    random, (low, high) = RandomState(1), (0.7, 1.5) if alter is gamma else (0.75, 1.25)
    below = random.random_sample(2) < 0.5
    draws = np.where(below, random.uniform(low, 1, 2), random.uniform(1, high, 2))
    for channel, result, draw in zip(channels, altered, draws, strict=True):
        assert torch.allclose(result, alter(channel[None], Fixed(draw))[0], rtol=1e-4, atol=1e-4)
    assert abs(altered[0].std() / channels[0].std() - 1) < 0.3


def test_factors_are_below_one_as_often_as_above() -> None:
    """nnU-Net's, though the exponents of gamma reach from 0.7 to 1.5."""
    curved = gamma(torch.linspace(0, 1, 101).expand(2000, 101), RandomState(0))
    lifted = int((curved[:, 50] > curved.mean(1)).sum())  # an exponent below 1 lifts the middle above the mean
    assert 900 < lifted < 1100


def test_noise_is_no_stronger_than_nnunets() -> None:
    random = RandomState(0)
    deviations = [float(noise(torch.zeros(1, 30, 30), random).std()) for _ in range(300)]
    assert 0.09 < max(deviations) < 0.11


@pytest.mark.parametrize("alter", [blur, low_resolution])
def test_blur_and_low_resolution_take_half_the_channels(alter: Callable[..., torch.Tensor]) -> None:
    channels = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 12, 12))).float()
    altered = (alter(channels, RandomState(0), axes=[0, 1]) != channels).flatten(1).any(1)
    assert 160 < int(altered.sum()) < 240


def test_alterations_happen_as_often_as_they_should() -> None:
    transform = RandAlterd(0.25, brightness)
    transform.set_random_state(0)
    altered = sum(transform({"image": torch.ones(1)})["image"].item() != 1 for _ in range(1000))
    assert 210 < altered < 290


def test_mirroring_keeps_image_and_label_together() -> None:
    image = torch.arange(24.0).view(1, 2, 3, 4)
    transform = RandMirrord([0, 2])
    transform.set_random_state(0)
    seen = set()
    for _ in range(40):
        result = transform({"image": image, "label": image.to(torch.int16)})
        assert torch.equal(result["image"], result["label"].float())
        seen.add(tuple(result["image"].flatten().tolist()))
    assert seen == {tuple(image.flip(axes).flatten().tolist()) for axes in ((), (1,), (3,), (1, 3))}
    assert torch.equal(RandMirrord([])({"image": image})["image"], image)


@pytest.mark.parametrize("patch", [[16, 16], [16, 16, 16], [4, 16, 16]])
def test_the_whole_chain_keeps_its_input(patch: list[int]) -> None:
    from monai.transforms import Compose

    shape = [40] * len(patch)
    stored = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float16)
    case = {
        "image": stored,
        "label": np.zeros((1, *shape), np.int8),
        "foreground": np.zeros((1 + len(patch), 0), np.int32),
    }
    before = stored.copy()
    transform = Compose(augmentation(len(patch), patch, range(len(patch))))
    transform.set_random_state(0)
    for _ in range(30):
        result = transform(case)
        assert result["image"].shape == (1, *patch) and result["image"].isfinite().all()
    assert np.array_equal(stored, before)


@pytest.mark.parametrize(
    ("patch_size", "slice_axis", "mirrored", "kept"),
    [([8, 8, 8], None, [1, 2], 0), ([8, 8], 1, [1], 0), ([8, 8], 2, [1], 0), ([8, 8, 8], None, [0, 1], 2)],
)
def test_axes_that_are_not_mirrored_keep_their_direction(
    patch_size: list[int], slice_axis: int | None, mirrored: list[int], kept: int
) -> None:
    """Of whole patches of training, not only of the transform: left stays left."""
    label = np.broadcast_to(np.arange(12).reshape([-1 if axis == kept else 1 for axis in range(3)]), (1, 12, 12, 12))
    case = {"image": label.astype(np.float32), "label": label, "foreground": np.zeros((4, 0), np.int32)}
    transforms = Compose(augmentation(len(patch_size), patch_size, mirrored, slice_axis))
    transforms.transforms[0].prob_rotate = transforms.transforms[0].prob_scale = 0
    transforms.set_random_state(0)
    along = [int(transforms(case)["label"][0].float().diff(dim=kept).sign().min()) for _ in range(30)]
    assert set(along) == {1}
