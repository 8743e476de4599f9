"""Logits that become labels slab by slab, against all of them brought back at once by MONAI's Invertd."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
import torch
from generators import write_image
from hypothesis import given, settings
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from threads import threads

from scripts.common.errors import in_one_line
from scripts.data.resampling import resize
from scripts.data.transforms import Preparation
from scripts.engines.inferers import InSlabs, sliding_window
from scripts.images.cases import LoadCased, load_image
from scripts.inference import logits as logits_module
from scripts.inference import slab_resampling
from scripts.inference.logits import LazyLogits, as_slabs
from scripts.inference.slab_resampling import resized_slabs
from scripts.inference.way_back import way_back
from scripts.postprocessing import from_slabs
from scripts.postprocessing.from_slabs import first_largest
from scripts.postprocessing.label_maps import to_label_map, to_saved_label_map

LABELS = {"a": 3, "b": 1, "c": 300}


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slabs of one plane, or of a few: what is small otherwise comes in one piece."""
    monkeypatch.setattr(logits_module, "SLAB_BYTES", 3000)
    monkeypatch.setattr(slab_resampling, "BLOCK_BYTES", {"cpu": 5000})
    with threads(1):
        yield


def random_affine(data: st.DataObject, dims: int) -> np.ndarray:
    """Any order and direction of the axes, oblique or not, any voxel size."""
    affine = np.eye(4)
    order, flips = data.draw(st.permutations(range(dims))), [data.draw(st.sampled_from([-1, 1])) for _ in range(dims)]
    zooms = [data.draw(st.sampled_from([0.6, 1.0, 1.7, 4.5])) for _ in range(dims)]
    angle = data.draw(st.sampled_from([0.0, 0.3]))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:dims, :dims] = np.eye(dims)[list(order)] @ np.diag(np.multiply(flips, zooms))
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (12, -34, 5)
    return affine


def smooth_logits(shape: tuple[int, ...], classes: int, seed: int) -> torch.Tensor:
    coarse = torch.randn(1, classes, *[3] * len(shape), generator=torch.Generator().manual_seed(seed))
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    return torch.nn.functional.interpolate(coarse, shape, mode=mode)[0] * 4


def lazy(logits: torch.Tensor, axis: int) -> LazyLogits:
    """The same logits in slabs along any axis."""
    moved = logits.movedim(axis + 1, 1)
    return LazyLogits(axis, tuple(logits.shape[1:]), lambda: iter(moved.split(2, dim=1)), lambda: logits)


def at_once(case: dict[str, Any], logits: torch.Tensor, steps: Compose) -> torch.Tensor:
    """Logits on the image's grid, all of them."""
    plain = MetaTensor(logits.clone(), meta=case["image"].meta)
    back = Invertd("pred", steps, orig_keys="image", nearest_interp=False)
    return back({**case, "pred": plain})["pred"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_logits_that_are_brought_back_at_once(data: st.DataObject) -> None:
    """Odd shapes, thick slices, oblique orientation, crops; tensors and lazy logits along every axis."""
    dims = data.draw(st.sampled_from([2, 3, 3, 3]))
    shape = tuple(data.draw(st.integers(3, 15)) for _ in range(dims))
    affine = random_affine(data, dims)
    image = np.random.default_rng(data.draw(st.integers(0, 9))).uniform(1, 2, shape).astype(np.float32)
    if crop := data.draw(st.booleans()):
        image[: shape[0] // 3], image[..., shape[-1] - 1 :] = 0, 0
    spacing = data.draw(st.sampled_from([None, [1.0, 1.3, 0.8], [None, 2.0, 1.1], [3.0, 0.5, 0.5]]))
    spacing = spacing and spacing[:dims]
    steps = Preparation(dims, 1, LABELS, spacing=spacing, crop_nonzero=crop).transforms("image")
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(image, affine), f"{folder}/a.nii")
        case = steps({"image": f"{folder}/a.nii"})
    logits = smooth_logits(tuple(case["image"].shape[1:]), len(LABELS) + 1, data.draw(st.integers(0, 99)))
    full = at_once(case, logits, steps)
    top = full.as_tensor().topk(2, dim=0).values
    clear = (top[0] - top[1]) > 1e-3  # equal up to rounding, which may turn what is a tie
    expected = torch.tensor([0, 1, 3, 300])[full.as_tensor().argmax(0)]
    for given_as in (logits, *(lazy(logits, axis) for axis in range(dims))):
        result = Compose(to_label_map(steps, LABELS, probabilities_key="p"))({**case, "pred": given_as})
        assert result["pred"].shape == full[:1].shape and clear.float().mean() > 0.9
        assert torch.equal(result["pred"].as_tensor()[0].long()[clear], expected[clear])
        torch.testing.assert_close(result["p"].as_tensor(), full.as_tensor().softmax(0), atol=1e-3, rtol=0)
        assert torch.allclose(result["pred"].affine, full.affine) and torch.allclose(result["p"].affine, full.affine)
        assert result["pred"].applied_operations == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_resampling_in_slabs_equals_that_of_the_whole(data: st.DataObject) -> None:
    dims = data.draw(st.sampled_from([2, 3]))
    size, target = (tuple(data.draw(st.integers(1, 17)) for _ in range(dims)) for _ in range(2))
    volume = torch.rand(2, *size)
    axis = data.draw(st.integers(0, dims - 1))
    thin = data.draw(st.sampled_from([None, *range(dims)]))
    thick = data.draw(st.integers(1, 5))
    slabs = volume.movedim(axis + 1, 1).split(thick, dim=1)
    result = torch.cat(list(resized_slabs(slabs, axis, size, target, thin)), dim=1).movedim(1, axis + 1)
    torch.testing.assert_close(result, resize(volume, target, 1, thin), atol=2e-5, rtol=0)


def test_first_of_equal_logits_wins_as_in_argmax() -> None:
    for classes in (1, 2, 15, 300):
        logits = torch.randint(-2, 3, (classes, 40, 30)).float()
        assert torch.equal(first_largest(logits).long(), logits.argmax(0))


def test_from_file_to_file_without_all_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's windows, resampling and large probabilities, from one file to others; no tensor of all logits."""
    image = np.random.default_rng(0).normal(size=(1, 15, 22, 18)).astype(np.float32)
    path = write_image(tmp_path / "a.nii.gz", image)
    (tmp_path / "out").mkdir()
    steps = Preparation(3, 1, LABELS, spacing=[0.7, 0.8, 0.9]).transforms("image")
    case = steps({"image": str(path)})

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x, x.roll(1, -1), x.roll(-2, 2)], dim=1)

    inferer = sliding_window([8, 8, 8], tta=True, mirror_axes=[0])
    expected = at_once(case, inferer(case["image"][None], network)[0], steps).as_tensor()
    (pred,) = InSlabs(inferer)(case["image"][None], network)
    monkeypatch.setattr(pred, "tensor", None)
    monkeypatch.setattr(from_slabs, "IN_MEMORY", 1000)
    mapped: list[np.memmap] = []
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *args, **options: mapped.append(memmap(*args, **options)) or mapped[-1])
    saved = to_saved_label_map(steps, LABELS, str(tmp_path / "out"), save_probabilities=True)
    result = Compose(saved)({**case, "pred": pred})
    values = torch.tensor([0, 1, 3, 300])[expected.argmax(0)]
    assert (torch.from_numpy(load_image(tmp_path / "out/a.nii.gz", 3)[0].numpy()) == values).float().mean() > 0.999
    file = nib.load(tmp_path / "out/a_probabilities.nii.gz")
    np.testing.assert_allclose(np.moveaxis(file.get_fdata(), -1, 0), expected.softmax(0), atol=1e-4)
    assert np.shares_memory(result["probabilities"].numpy(), mapped[0])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.nii.gz", "a_probabilities.nii.gz"]


def test_a_step_of_another_program_is_undone_by_monai(tmp_path: Path) -> None:
    """What the way back does not know goes the old way: all logits at once."""
    from monai.transforms import Flipd

    path = write_image(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32))
    steps = Compose([LoadCased(["image"], 3, 1, LABELS), Flipd(["image"], 1)])
    case = steps({"image": str(path)})
    assert way_back(case["image"], steps) is None
    logits = smooth_logits((5, 6, 7), 4, 0)
    for pred in (logits, lazy(logits, 1)):
        result = Compose(to_label_map(steps, LABELS))({**case, "pred": pred})["pred"]
        assert torch.equal(result.as_tensor()[0].long(), torch.tensor([0, 1, 3, 300])[logits.flip(2).argmax(0)])


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(from_slabs, "IN_MEMORY", 10)
    monkeypatch.setattr("os.posix_fallocate", full)
    steps = Compose(to_label_map(Compose([]), LABELS, probabilities_key="p", folder=str(tmp_path)))
    with pytest.raises(RuntimeError, match="ToLabelMapd") as caught:
        steps({"pred": smooth_logits((5, 6), 4, 0)})
    assert "No space left on device" in in_one_line(caught.value) and not list(tmp_path.iterdir())


def test_slabs_of_a_tensor_are_its_parts() -> None:
    logits = smooth_logits((9, 140), 4, 1)
    slabs = list(as_slabs(logits).slabs())
    assert len(slabs) > 1 and torch.equal(torch.cat(slabs, dim=1), logits)
    assert torch.equal(as_slabs(logits).tensor(), logits)
