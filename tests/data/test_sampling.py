"""Patches from memory-mapped cases: where they lie, what fills them, and how turning and scaling samples them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from patches import PatchMaker, case_of
from scipy.stats import kstest
from threads import threads

from scripts.data.sampling import PatchSampler, in_plane, rotation_range


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def test_patch_is_what_lies_there() -> None:
    label = np.random.default_rng(0).integers(-1, 3, (30, 40, 20))
    position = np.ravel_multi_index(np.indices(label.shape), label.shape)[None].astype(np.float32)
    transform = PatchMaker([8, 16, 8])
    for _ in range(20):
        patch = transform(case_of(label, position))
        assert patch["image"].dtype == torch.float32 and patch["label"].dtype == torch.int16
        start = np.unravel_index(int(patch["image"][0, 0, 0, 0]), label.shape)
        box = tuple(slice(at, at + size) for at, size in zip(start, (8, 16, 8), strict=True))
        assert np.array_equal(patch["image"][0], position[0][box]) and np.array_equal(patch["label"][0], label[box])


def test_a_third_of_the_patches_are_around_foreground() -> None:
    label = np.zeros((200, 200))
    label[150:152, 40:42] = 1
    transform = PatchMaker([16, 16], seed=1)
    hits = sum(transform(case_of(label))["label"].any().item() for _ in range(600))
    assert 170 <= hits <= 235  # a third, plus the few of the others that meet it


def test_classes_are_drawn_alike_however_small() -> None:
    label = np.zeros((60, 60, 60))
    label[:20], label[50, 50, 50] = 1, 2
    transform = PatchMaker([8, 8, 8], foreground_share=1)
    rare = sum((transform(case_of(label))["label"] == 2).any().item() for _ in range(200))
    assert 75 <= rare <= 125


@pytest.mark.parametrize("classes", [0, 1])
def test_patches_of_a_sparsely_annotated_case_lie_around_annotated_voxels(classes: int) -> None:
    """A patch of ignored voxels alone teaches nothing."""
    label = np.full((96, 32, 32), -1)
    label[[5, 40, 41, 90]] = 0
    label[40, :8, :8] = classes
    transform = PatchMaker([16, 16, 16])
    patches = [transform(case_of(label))["label"] for _ in range(100)]
    assert all((patch >= 0).any() for patch in patches)
    assert sum(bool((patch == 1).any()) for patch in patches) >= 25 * classes


@pytest.mark.parametrize("shape", [(10, 50, 7), (4, 4, 4), (16, 24, 1)])
def test_small_volumes_lie_in_the_middle_of_zeros(shape: tuple[int, ...]) -> None:
    case = case_of(np.full(shape, 2), np.ones((1, *shape), np.float16))
    for options in ({}, {"foreground_share": 1}):
        patch = PatchMaker([16, 24, 16], **options)(case)
        assert patch["image"].shape == patch["label"].shape == (1, 16, 24, 16)
        inside = [min(a, b) for a, b in zip(shape, (16, 24, 16), strict=True)]
        assert patch["image"].sum() == math.prod(inside)
        assert torch.equal(patch["image"] == 1, patch["label"] == 2)
        for axis, size in enumerate(inside):
            line = torch.nonzero(patch["image"][0].amax([other for other in range(3) if other != axis])).flatten()
            assert len(line) == size and abs(int(line[0]) - (patch["image"].shape[axis + 1] - size) / 2) <= 0.5


def test_a_case_without_foreground() -> None:
    assert not PatchMaker([8, 8], foreground_share=1)(case_of(np.zeros((20, 20))))["label"].any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices(axis: int) -> None:
    label = np.zeros((30, 31, 32))
    label[12, 13, 14] = 1
    number = np.indices(label.shape)[axis][None].astype(np.float16)
    patch = PatchMaker([16, 16], slice_axis=axis, foreground_share=1)(case_of(label, number))
    assert patch["image"].shape == patch["label"].shape == (1, 16, 16)
    assert (patch["image"] == (12, 13, 14)[axis]).all() and patch["label"].sum() == 1


@pytest.mark.parametrize("patch", [[16, 16], [16, 24, 16], [4, 24, 24]])
@pytest.mark.parametrize("options", [{"prob_rotate": 1}, {"prob_scale": 1}, {"prob_rotate": 1, "prob_scale": 1}])
def test_turned_patches_hold_image_up_to_their_corners(patch: list[int], options: dict) -> None:
    """A linear ramp stays a linear ramp, and nothing is filled with zeros, wherever there is image."""
    shape = [160] * len(patch)
    ramp = sum((k + 1) * index for k, index in enumerate(np.indices(shape)))[None].astype(np.float32) + 1
    label = (ramp[0] > np.median(ramp)).astype(int)
    transform = PatchMaker(patch, seed=3, **options)
    transform.augment.choose._start = lambda *_: [80 - size // 2 for size in patch]  # type: ignore[method-assign]
    for _ in range(5):
        result = transform(case_of(label, ramp))
        image = result["image"][0].numpy()
        assert image.shape == tuple(patch) and image.min() > 1
        for axis in range(len(patch)):
            assert np.abs(np.diff(image, 2, axis=axis)).max() < 0.02  # second differences of a plane
        centre = image[tuple(size // 2 for size in patch)]
        assert abs(centre - ramp[0][tuple([80] * len(patch))]) < 3 * len(patch)
        sure = np.abs(image - np.median(ramp)) > 3 * len(patch)
        assert np.array_equal(result["label"][0].numpy()[sure], (image > np.median(ramp))[sure])


def test_scale_is_that_of_nnunet() -> None:
    ramp = np.indices((300, 300))[0][None].astype(np.float32)
    transform = PatchMaker([32, 32], prob_scale=1)
    steps = [float(transform(case_of(np.zeros((300, 300)), ramp))["image"][0].diff(dim=0).mean()) for _ in range(40)]
    assert 1 / 1.4 - 0.01 <= min(steps) < 0.8 and 1.3 < max(steps) <= 1 / 0.7 + 0.01


def test_flat_patches_turn_in_their_plane() -> None:
    assert in_plane([16, 128, 128]) == [1, 2] and in_plane([128, 128, 32]) == [0, 1]
    assert in_plane([40, 56, 40]) == [0, 1, 2] and in_plane([512, 64]) == [0, 1]
    assert rotation_range([16, 128, 128]) == math.pi and rotation_range([64, 64, 64]) == pytest.approx(math.pi / 6)
    assert rotation_range([512, 512]) == math.pi and rotation_range([512, 256]) == pytest.approx(math.pi / 12)
    transform = PatchMaker([4, 24, 24], prob_rotate=1, prob_scale=1)
    depth = np.indices((20, 60, 60))[0][None].astype(np.float32)
    patch = transform(case_of(np.zeros((20, 60, 60)), depth))["image"][0]
    inner = patch[:, 8:16, 8:16]
    assert torch.allclose(inner, inner[:, :1, :1].expand_as(inner), atol=1e-3)  # every slice stays one
    assert torch.allclose(inner.diff(dim=0), torch.ones(3, 8, 8), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"prob_rotate": 1}, {"prob_scale": 1}])
@pytest.mark.parametrize("patch", [[9, 11], [9, 11, 7], [3, 11, 13]])
def test_the_voxel_in_the_middle_stays_there(patch: list[int], options: dict) -> None:
    """Turned or not, the patch around a labelled voxel has it in its centre."""
    label = np.zeros([40] * len(patch))
    label[(20,) * len(patch)] = 1
    transform = PatchMaker(patch, foreground_share=1, **options)
    for _ in range(10):
        assert transform(case_of(label))["label"][(0, *(size // 2 for size in patch))] == 1


def matrices(patch: list[int], count: int, **options: float) -> np.ndarray:
    choose, random = PatchSampler(patch, **options), np.random.default_rng(0)
    return np.array([choose._matrix(random) for _ in range(count)])


def test_a_fifth_of_the_patches_is_turned_and_a_fifth_scaled() -> None:
    choose, random = PatchSampler([32, 32]), np.random.default_rng(0)
    drawn = [matrix for matrix in (choose._matrix(random) for _ in range(4000)) if matrix is not None]
    scaled = [not math.isclose(abs(np.linalg.det(matrix)), 1) for matrix in drawn]
    turned = [matrix[0, 1] != 0 for matrix in drawn]
    assert abs(len(drawn) / 4000 - 0.36) < 0.025  # of 1 - 0.8 * 0.8
    assert abs(sum(scaled) / 4000 - 0.2) < 0.02 and abs(sum(turned) / 4000 - 0.2) < 0.02


def test_angles_and_scales_are_drawn_evenly_from_nnunets_ranges() -> None:
    flat = matrices([32, 32], 1000, prob_rotate=1, prob_scale=0)
    assert kstest(np.arctan2(flat[:, 1, 0], flat[:, 0, 0]), "uniform", (-np.pi, 2 * np.pi)).pvalue > 0.01
    deep = matrices([32, 32, 32], 1000, prob_rotate=1, prob_scale=1)
    scale = np.cbrt(np.linalg.det(deep))
    assert kstest(1 / scale, "uniform", (0.7, 0.7)).pvalue > 0.01
    turns = deep / scale[:, None, None]
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3))
    angles = (
        np.arctan2(turns[:, 1, 0], turns[:, 0, 0]),
        np.arcsin(turns[:, 2, 0]),
        np.arctan2(turns[:, 2, 1], turns[:, 2, 2]),
    )
    for angle in angles:
        assert kstest(angle, "uniform", (-np.pi / 6, np.pi / 3)).pvalue > 0.01
    slab = matrices([8, 64, 64], 200, prob_rotate=1, prob_scale=1)
    assert (slab[:, 0] == [1, 0, 0]).all() and (slab[:, :, 0] == [1, 0, 0]).all()
