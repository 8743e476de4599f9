"""Turned and scaled patches against scipy's interpolation in float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patches import PatchMaker
from scipy.ndimage import map_coordinates

from scripts.data.sampling import Region
from scripts.data.warping import warp

PATCHES = [[7, 12], [16, 9], [8, 9, 6], [3, 12, 13], [12, 13, 3]]


def positions(region: Region, patch: list[int]) -> np.ndarray:
    """(dims, *patch): where each voxel of the patch lies in its box."""
    half = (np.array(patch) - 1) / 2
    steps = np.indices(patch).reshape(len(patch), -1) - half[:, None]
    return (region.matrix @ steps + region.centre[:, None]).reshape(len(patch), *patch)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATCHES), st.sampled_from([(1, 0), (0, 1), (1, 1)]), st.integers(0, 10**6))
def test_it_is_scipys(patch: list[int], probabilities: tuple[int, int], seed: int) -> None:
    """For regions in the middle of a case, at its edges, and of cases that are smaller than the patch."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 25, len(patch))
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.integers(-1, 4, (1, *shape)).astype(np.int8)
    case = {"image": image, "label": label, "foreground": np.zeros((1 + len(patch), 0), np.int32)}
    maker = PatchMaker(patch, prob_rotate=probabilities[0], prob_scale=probabilities[1])
    cut = maker.augment.cut(case, rng)
    raw = maker.augment.gather([cut])
    boxes = raw.turned.image[0].double().numpy(), raw.turned.label[0].numpy()
    at = positions(cut.region, patch)
    got = maker.augment.finish(raw, torch.device("cpu"))
    for channel, result in zip(boxes[0], got["image"][0].numpy(), strict=True):
        wanted = map_coordinates(channel, at, order=1, mode="grid-constant", cval=0)
        assert np.allclose(result, wanted, atol=1e-4)
    rounded = np.floor(at + 0.5).astype(int)
    inside = ((rounded >= 0) & (rounded < np.array(boxes[1].shape[1:]).reshape(-1, *[1] * len(patch)))).all(0)
    nearest = np.where(inside, boxes[1][0][tuple(np.where(inside, rounded, 0))], 0)
    ties = (np.abs(at + 0.5 - np.round(at + 0.5)) < 1e-3).any(0)
    assert np.array_equal(got["label"][0, 0].numpy()[~ties], nearest[~ties])
    assert set(np.unique(got["label"])) <= {0, *np.unique(label)}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(PATCHES), st.integers(0, 10**6))
def test_the_box_holds_all_that_the_patch_covers(patch: list[int], seed: int) -> None:
    """Sampled from the box as from the whole case."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(5, 30, len(patch))
    image = rng.normal(size=(1, *shape))
    label = np.zeros((1, *shape), np.int8)
    case = {"image": image.astype(np.float32), "label": label, "foreground": np.zeros((1 + len(patch), 0), np.int32)}
    maker = PatchMaker(patch, prob_rotate=1, prob_scale=1)
    start = maker.augment.choose._start(shape, case["foreground"], rng)
    maker.augment.choose._start = lambda *_: list(start)  # type: ignore[method-assign]
    cut = maker.augment.cut(case, rng)
    whole = Region(image, label, [0], shape, cut.region.matrix, np.array(start) + (np.array(patch) - 1) / 2)
    wanted = map_coordinates(image[0], positions(whole, patch), order=1, mode="grid-constant", cval=0)
    got = maker.augment.finish(maker.augment.gather([cut]), torch.device("cpu"))["image"][0, 0].numpy()
    assert np.allclose(got, wanted, atol=1e-4)


def test_patches_of_a_batch_do_not_see_each_other() -> None:
    """Boxes of different sizes share one array."""
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.normal(size=(3, 2, 20, 20, 20))).float()
    label = torch.from_numpy(rng.integers(0, 5, (3, 1, 20, 20, 20)))
    matrices = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0]
    centres = rng.uniform(5, 15, (3, 3))
    together = warp(boxes, label, matrices, centres, [8, 9, 10])
    for i in range(3):
        alone = warp(boxes[i : i + 1], label[i : i + 1], matrices[i : i + 1], centres[i : i + 1], [8, 9, 10])
        assert torch.equal(alone[0][0], together[0][i]) and torch.equal(alone[1][0], together[1][i])
