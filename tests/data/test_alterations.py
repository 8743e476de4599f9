"""What each alteration does to the channels of patches, against slower and plainer forms of the same, and how often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.stats import kstest

from scripts.data.alterations import (
    Alteration,
    alterations,
    blur,
    brightness,
    contrast,
    gamma,
    low_resolution,
    multiply_axes,
    noise,
)

NAMES = ["noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma"]
DRAWS = 1000


def same(value: float, rows: int = 2, parameters: int = 1) -> np.ndarray:
    return np.full((rows, parameters), value)


def drawn(name: str, axes: list[int] | None = None, channels: int = 2) -> np.ndarray:
    """(draws, channels, parameters)."""
    random = np.random.default_rng(0)
    step = alterations(axes or [0, 1, 2])[NAMES.index(name)]
    return np.array([step.draw(random, channels) for _ in range(DRAWS)])


@pytest.fixture
def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(1, 2, (2, 20, 24, 18))).float()


def test_blur_is_scipys(image: torch.Tensor) -> None:
    sigmas = np.array([[0.8, 0.6], [0.5, 1.0]])
    blurred = blur(image, sigmas, axes=[0, 2]).numpy()
    for channel, result, (first, last) in zip(image.numpy(), blurred, sigmas, strict=True):
        expected = gaussian_filter1d(gaussian_filter1d(channel, first, 0, truncate=4), last, 2, truncate=4)
        assert np.allclose(result[4:-4, :, 4:-4], expected[4:-4, :, 4:-4], atol=1e-5)
    assert torch.allclose(blur(torch.ones(1, 9, 9), same(1.0, 1, 2), axes=[0, 1]), torch.ones(1, 9, 9))


def test_low_resolution_takes_every_second_voxel() -> None:
    ramp = torch.arange(20.0).expand(1, 6, 20).contiguous()
    lowered = low_resolution(ramp, same(0.5, 1), axes=[1])
    assert torch.allclose(lowered[0, 0, 1:-1].diff(), torch.ones(17))  # linear between the voxels that were kept
    impulse = torch.zeros(1, 20)
    impulse[0, 8] = 1
    assert not low_resolution(impulse, same(0.5, 1), axes=[0]).any()  # the nearest voxels are the odd ones
    image = torch.rand(1, 7, 8, 9)
    assert torch.allclose(low_resolution(image, same(1.0, 1), axes=[0, 1, 2]), image, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 56, 129])
def test_low_resolution_is_nearest_down_and_linear_up(length: int) -> None:
    """Of whole numbers, since PyTorch's "nearest-exact" rounds where a voxel's middle lies between two others."""
    zooms = np.linspace(0.5, 1, 23)
    rows = torch.rand(len(zooms), length)
    for row, zoom, result in zip(rows, zooms, low_resolution(rows, zooms[:, None], axes=[0]), strict=True):
        count = max(1, round(length * zoom))
        coarse = row[[(2 * k + 1) * length // (2 * count) for k in range(count)]]
        expected = torch.nn.functional.interpolate(coarse[None, None], size=length, mode="linear")[0, 0]
        assert torch.allclose(result, expected, atol=1e-5)


def test_contrast_keeps_mean_and_range(image: torch.Tensor) -> None:
    flat = contrast(image, same(0.75))
    axes = (1, 2, 3)
    assert torch.allclose(flat.mean(axes), image.mean(axes), atol=1e-5)
    assert torch.allclose(flat.std(axes), 0.75 * image.std(axes), atol=1e-5)
    steep = contrast(image, same(1.25))
    assert (steep.amin(axes) >= image.amin(axes)).all() and (steep.amax(axes) <= image.amax(axes)).all()


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_and_deviation(image: torch.Tensor, inverted: bool) -> None:
    before = image.clone()
    curved = gamma(image, same(1.4), inverted=inverted)
    assert torch.equal(image, before)
    axes = (1, 2, 3)
    assert torch.allclose(curved.mean(axes), image.mean(axes), atol=1e-4)
    assert torch.allclose(curved.std(axes), image.std(axes), atol=1e-4)
    sign = -1 if inverted else 1
    for channel, result in zip(image, curved, strict=True):
        order = channel.flatten().argsort()
        assert (result.flatten()[order].diff() > -1e-5).all()  # a curve: larger stays larger
        low = sign * channel if not inverted else -channel
        expected = ((low - low.min()) / (low.max() - low.min())) ** 1.4
        expected = sign * (expected - expected.mean()) / expected.std() * channel.std() + channel.mean()
        assert torch.allclose(result, expected, atol=1e-4)
    assert gamma(torch.ones(1, 4, 4), same(1.4, 1)).isfinite().all()


def test_noise_has_its_deviation_and_depends_on_its_seed_alone(image: torch.Tensor) -> None:
    table = np.array([[0.3, 5.0], [0.01, 6.0]])
    added = noise(image, table) - image
    for row, deviation in zip(added, (0.3, 0.01), strict=True):
        assert float(row.std()) == pytest.approx(deviation, rel=0.05) and abs(float(row.mean())) < deviation / 20
    assert not torch.equal(added[0] / 0.3, added[1] / 0.01)
    swapped = noise(image.flip(0), table[::-1])
    assert torch.equal(swapped, (image + added).flip(0)) or torch.allclose(swapped, (image + added).flip(0))


def test_brightness(image: torch.Tensor) -> None:
    assert torch.allclose(
        brightness(image, np.array([[0.8], [1.2]])), image * torch.tensor([0.8, 1.2]).view(2, 1, 1, 1)
    )


@pytest.mark.parametrize("alter", [brightness, contrast, gamma])
def test_each_channel_is_altered_by_itself(
    image: torch.Tensor, alter: Callable[[torch.Tensor, np.ndarray], torch.Tensor]
) -> None:
    """Channels of very different intensities, such as CT and PET, would else be squeezed to a constant."""
    channels, factors = torch.stack([image[0], 300 + 100 * image[1]]), np.array([[0.8], [1.2]])
    altered = alter(channels, factors)
    for i in range(2):
        assert torch.allclose(altered[i], alter(channels[i : i + 1], factors[i : i + 1])[0], rtol=1e-4, atol=1e-4)
    assert abs(altered[0].std() / channels[0].std() - 1) < 0.3


def test_products_along_each_axis() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 4, 5, 6))
    matrices = {axis: rng.normal(size=(3, 7 + axis, n)) for axis, n in enumerate((4, 5, 6))}
    expected = np.einsum("rijk,rai,rbj,rck->rabc", rows, *matrices.values())
    got = multiply_axes(torch.from_numpy(rows), {axis: torch.from_numpy(m) for axis, m in matrices.items()})
    assert np.allclose(got, expected)


def test_patches_are_altered_as_often_as_nnunets() -> None:
    assert [step.prob for step in alterations([0])] == [0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3]
    assert all(isinstance(step, Alteration) for step in alterations([0]))


def test_noise_is_as_strong_as_nnunets() -> None:
    """Up to 0.1, which nnU-Net calls a variance and uses as a deviation; one for all channels."""
    tables = drawn("noise")
    assert kstest(tables[:, 0, 0], "uniform", (0, 0.1)).pvalue > 0.01
    assert (tables[:, 0, 0] == tables[:, 1, 0]).all() and len(np.unique(tables[:, :, 1])) == 2 * DRAWS


@pytest.mark.parametrize(("name", "parameters"), [("blur", 3), ("low_resolution", 1)])
def test_blur_and_low_resolution_take_half_the_channels(name: str, parameters: int) -> None:
    """Each channel by itself, with parameters of its own, for blur one an axis."""
    tables = drawn(name)
    assert tables.shape[2] == parameters
    chosen = ~np.isnan(tables)
    assert (chosen == chosen[:, :, :1]).all() and abs(chosen[:, :, 0].mean() - 0.5) < 0.03
    assert abs(chosen.all((1, 2)).mean() - 0.25) < 0.04
    values = tables[chosen.all(2)]
    assert len(np.unique(values)) == values.size
    for column in values.T:
        assert kstest(column, "uniform", (0.5, 0.5)).pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5), ("inverted_gamma", 0.7, 1.5)],
)
def test_factors_are_below_one_as_often_as_above(name: str, low: float, high: float) -> None:
    """nnU-Net's, though the exponents of gamma reach from 0.7 to 1.5; each channel has its own."""
    tables = drawn(name)[:, :, 0]
    below = tables < 1
    assert abs(below.mean() - 0.5) < 0.03 and abs(below.all(1).mean() - 0.25) < 0.04
    assert kstest(tables[below], "uniform", (low, 1 - low)).pvalue > 0.01
    assert kstest(tables[~below], "uniform", (1, high - 1)).pvalue > 0.01


def test_flat_patches_are_blurred_in_their_plane() -> None:
    assert drawn("blur", axes=[1, 2]).shape[2] == 2
    depth = torch.rand(1, 4, 1, 1).expand(1, 4, 8, 8).contiguous()
    assert torch.allclose(blur(depth, same(1.0, 1, 2), axes=[1, 2]), depth, atol=1e-6)
    assert torch.allclose(low_resolution(depth, same(0.5, 1), axes=[1, 2]), depth, atol=1e-6)
