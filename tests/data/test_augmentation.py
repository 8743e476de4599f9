"""Augmented batches: what is drawn for a patch, what its batch makes of it, on the CPU and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patches import CPU, case_of

from scripts.data.augmentation import Augmentation, RawBatch

PATCHES = [[16, 12], [12, 16, 10], [4, 16, 16]]


def case(dims: int, channels: int = 2, size: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 3, [size] * dims)
    return case_of(label, rng.normal(size=(channels, *label.shape)).astype(np.float16))


def raw_batch(augment: Augmentation, patches: int, seed: int, channels: int = 2) -> RawBatch:
    random = np.random.default_rng(seed)
    stored = case(len(augment.patch_size), channels)
    return augment.gather([augment.cut(stored, random) for _ in range(patches)])


@pytest.mark.parametrize("patch", PATCHES)
def test_a_batch_has_the_shapes_and_types_of_training(patch: list[int]) -> None:
    """And is repeatable: what is cut, and the raw batch, stay as they are."""
    augment, stored = Augmentation(patch, range(len(patch))), case(len(patch))
    before = stored["image"].copy()
    cuts = [augment.cut(stored, np.random.default_rng(seed)) for seed in range(30)]
    raw = augment.gather(cuts)
    first, second = augment.finish(raw, CPU), augment.finish(raw, CPU)
    assert first["image"].shape == (30, 2, *patch) and first["image"].dtype == torch.float32
    assert first["label"].shape == (30, 1, *patch) and first["label"].dtype == torch.int16
    assert first["image"].is_contiguous() and first["image"].isfinite().all()
    assert set(first["label"].unique().tolist()) == {-1, 0, 1, 2}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(stored["image"], before)


@pytest.mark.parametrize("patch", PATCHES)
def test_patches_of_a_batch_are_what_they_are_alone(patch: list[int]) -> None:
    augment, stored = Augmentation(patch, range(len(patch))), case(len(patch))
    cuts = [augment.cut(stored, np.random.default_rng(seed)) for seed in range(25)]
    together = augment.finish(augment.gather(cuts), CPU)
    for i, cut in enumerate(cuts):
        alone = augment.finish(augment.gather([cut]), CPU)
        assert torch.allclose(alone["image"][0], together["image"][i], atol=1e-5)
        assert torch.equal(alone["label"][0], together["label"][i])


def test_the_drawn_alterations_are_done_in_their_order_to_the_drawn_channels() -> None:
    augment, stored = Augmentation([12, 12], []), case(2, channels=3)
    augment.choose.prob_rotate = augment.choose.prob_scale = 0
    altered = 0
    for seed in range(60):
        cut = augment.cut(stored, np.random.default_rng(seed))
        expected = torch.from_numpy(np.array(cut.region.image)).float()
        for step, table in zip(augment.alterations, cut.tables, strict=True):
            for channel in range(3):
                if table is not None and not np.isnan(table[channel]).any():
                    expected[channel] = step.apply(expected[channel : channel + 1], table[channel : channel + 1])[0]
                    altered += 1
        assert torch.allclose(augment.finish(augment.gather([cut]), CPU)["image"][0], expected, atol=1e-5)
    assert altered > 60


def test_alterations_happen_as_often_as_they_should() -> None:
    augment, stored, random = Augmentation([4, 4], [0, 1]), case(2, size=8), np.random.default_rng(0)
    cuts = [augment.cut(stored, random) for _ in range(4000)]
    for number, step in enumerate(augment.alterations):
        share = sum(cut.tables[number] is not None for cut in cuts) / 4000
        assert abs(share - step.prob) < 4 * (step.prob * (1 - step.prob) / 4000) ** 0.5


def test_mirroring_keeps_image_and_label_together() -> None:
    """Along each of the axes half the time, never along another."""
    label = np.arange(24).reshape(2, 3, 4)
    augment = Augmentation([2, 3, 4], [0, 2])
    augment.choose.prob_rotate = augment.choose.prob_scale = 0
    augment.alterations = []
    random, stored = np.random.default_rng(0), case_of(label, label[None].astype(np.float16))
    batch = augment.finish(augment.gather([augment.cut(stored, random) for _ in range(400)]), CPU)
    assert torch.equal(batch["image"], batch["label"].float())
    found = [tuple(patch.flatten().tolist()) for patch in batch["label"]]
    for axes in ((), (0,), (2,), (0, 2)):
        assert 70 < found.count(tuple(np.flip(label, axes).ravel().tolist())) < 130


@pytest.mark.parametrize(
    ("patch_size", "slice_axis", "mirrored", "kept"),
    [([8, 8, 8], None, [1, 2], 0), ([8, 8], 1, [1], 0), ([8, 8], 2, [1], 0), ([8, 8, 8], None, [0, 1], 2)],
)
def test_axes_that_are_not_mirrored_keep_their_direction(
    patch_size: list[int], slice_axis: int | None, mirrored: list[int], kept: int
) -> None:
    """Of whole patches of training, not only of the mirroring: left stays left."""
    label = np.broadcast_to(np.arange(12).reshape([-1 if axis == kept else 1 for axis in range(3)]), (12, 12, 12))
    augment, random = Augmentation(patch_size, mirrored, slice_axis), np.random.default_rng(0)
    augment.choose.prob_rotate = augment.choose.prob_scale = 0
    cuts = [augment.cut(case_of(label), random) for _ in range(30)]
    along = augment.finish(augment.gather(cuts), CPU)["label"].float().diff(dim=kept + 2).sign()
    assert set(along.unique().tolist()) == {1}


def test_cases_of_different_types_share_a_batch() -> None:
    """A case with large intensities is kept as float32, one with many classes as int16."""
    augment = Augmentation([8, 8], [])
    augment.choose.prob_rotate = augment.choose.prob_scale = 0
    augment.alterations = []
    small, large = case(2, 1), case(2, 1)
    large["image"], large["label"] = large["image"].astype(np.float32) * 1e6, large["label"].astype(np.int16) + 300
    cuts = [augment.cut(stored, np.random.default_rng(0)) for stored in (small, large)]
    batch = augment.finish(augment.gather(cuts), CPU)
    assert torch.equal(batch["image"][0] * 1e6, batch["image"][1])
    assert torch.equal(batch["label"][0] + 300, batch["label"][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("seed", range(4))
def test_a_gpu_makes_the_same_of_a_batch_without_waiting(patch: list[int], seed: int) -> None:
    augment, gpu = Augmentation(patch, range(len(patch))), torch.device("cuda")
    raw = raw_batch(augment, 12, seed)
    noisy = augment.finish(raw.pin_memory(), gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = augment.finish(raw, gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(noisy[key], again[key]) for key in noisy)
    raw.altered[0] = None  # the noise, of which a GPU makes other numbers
    on_cpu, on_gpu = (augment.finish(raw, device) for device in (CPU, gpu))
    assert torch.allclose(on_cpu["image"], on_gpu["image"].cpu(), atol=1e-4)
    assert (on_cpu["label"] != on_gpu["label"].cpu()).float().mean() < 1e-3  # voxels between two others
