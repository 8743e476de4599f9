"""Sliding windows that are mirrored, summed and handed on slab by slab, against inference on the whole image."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from monai.data import decollate_batch
from monai.inferers import SimpleInferer
from threads import threads
from whole_image import whole_image

from scripts.common.errors import UserError
from scripts.engines import inferers
from scripts.engines.inferers import InSlabs, SlidingWindow, sliding_window
from scripts.inference import logits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def position_weighted(x: torch.Tensor) -> torch.Tensor:
    """A network of two classes that is not equivariant to flips."""
    place = torch.linspace(0, 1, x[0, 0].numel(), dtype=x.dtype).view(x.shape[2:])
    return torch.cat([x[:, :1] * place, place - x[:, :1]], dim=1)


def slabs_of(inferer: SlidingWindow, image: torch.Tensor, network: Any = position_weighted) -> torch.Tensor:
    """Logits (classes, *spatial) put together from slabs."""
    lazy = inferer.lazily(image, network)
    return torch.cat(list(lazy.slabs()), dim=1).movedim(1, lazy.axis + 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_whole_image(data: st.DataObject) -> None:
    """Odd shapes, images smaller than a window along some axes, any overlap, without mirroring."""
    dims = data.draw(st.sampled_from([2, 3]))
    size = data.draw(st.lists(st.integers(1, 23), min_size=dims, max_size=dims))
    patch = data.draw(st.lists(st.sampled_from([2, 3, 4, 8]), min_size=dims, max_size=dims))
    overlap, batch = data.draw(st.sampled_from([0.0, 0.3, 0.5, 0.7])), data.draw(st.integers(1, 5))
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(len(size)))
    expected = whole_image(image, position_weighted, patch, overlap)
    inferer = sliding_window(patch, overlap, batch)
    torch.testing.assert_close(inferer(image, position_weighted), expected)
    torch.testing.assert_close(slabs_of(inferer, image[0]), expected[0])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_mirrored_windows_equal_the_mirrored_image_where_windows_lie_symmetrically(data: st.DataObject) -> None:
    patch = [4, 6, 4]
    steps = data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3))
    size = [window + step * window // 2 for window, step in zip(patch, steps)]
    size[0] -= data.draw(st.sampled_from([0, 2])) if steps[0] == 0 else 0  # padded by the same on both sides
    axes = data.draw(st.sets(st.integers(0, 2), min_size=1).map(sorted))
    image = torch.rand(2, 1, *size)
    expected = whole_image(image, position_weighted, patch, 0.5, axes)
    inferer = sliding_window(patch, tta="true", mirror_axes=axes, sw_batch_size=data.draw(st.integers(1, 9)))
    torch.testing.assert_close(inferer(image, position_weighted), expected)
    torch.testing.assert_close(slabs_of(inferer, image[1]), expected[1])


def test_average_over_every_combination_of_axes() -> None:
    x = torch.rand(1, 2, 3, 4, 5)
    combinations = [[], [2], [4], [2, 4]]
    expected = sum(torch.flip(position_weighted(torch.flip(x, axes)), axes) for axes in combinations) / 4
    inferer = sliding_window([3, 4, 5], tta=True, mirror_axes=[0, 2])
    assert torch.allclose(inferer(x, position_weighted), expected)
    assert len(sliding_window([3, 4, 5], tta=True, mirror_axes=[0, 1, 2]).flips) == 8


@pytest.mark.parametrize(("tta", "axes", "flips"), [(True, [1], 2), ("false", [1], 1), ("true", [], 1)])
def test_switch(tta: bool | str, axes: list[int], flips: int) -> None:
    assert len(sliding_window([8, 8], tta=tta, mirror_axes=axes).flips) == flips
    with pytest.raises(UserError, match="tta must be true or false"):
        sliding_window([8, 8], tta="perhaps", mirror_axes=[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("mirror_axes", [[], [0, 1]])
def test_slices_of_volumes(axis: int, mirror_axes: list[int]) -> None:
    """Every slice goes through a 2D network alone; mirrored axes are those of the slice."""
    volume = torch.rand(1, 1, 8, 12, 16)
    seen: list[torch.Size] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return position_weighted(x)

    inferer = sliding_window([8, 8], tta="true", mirror_axes=mirror_axes, slice_axis=axis)
    plane = [other for other in range(3) if other != axis]
    axes = [plane[mirrored] for mirrored in mirror_axes]
    expected = whole_image(volume, position_weighted, [8, 8], 0.5, axes, axis)
    torch.testing.assert_close(inferer(volume, network), expected)
    assert {shape[2:] for shape in seen} == {(8, 8)}
    torch.testing.assert_close(slabs_of(inferer, volume[0], network), expected[0])
    lazy = inferer.lazily(volume[0], network)
    assert lazy.axis == axis and max(slab.shape[1] for slab in lazy.slabs()) <= 2  # few planes wait for others


def test_memory_is_bounded_by_windows() -> None:
    """Along the axis that takes the least, planes are held only while windows touch them, and so on the slabs."""
    held = []

    class Watched(inferers.Accumulator):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            held.append(tuple(self.total.shape))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inferers, "Accumulator", Watched)
        patch.setattr(logits, "SLAB_BYTES", 4 * 2 * 20 * 24 * 2)
        slabs = list(sliding_window([8, 8, 8]).lazily(torch.rand(1, 20, 24, 90), position_weighted).slabs())
    assert held == [(2, 20, 24, 8)]
    assert [slab.shape for slab in slabs] == [(2, 2, 20, 24)] * 45


@pytest.mark.parametrize(("size", "axis"), [([40, 40, 40], 0), ([40, 40, 48], 0), ([40, 40, 90], 2), ([20, 48, 56], 1)])
def test_the_walk_goes_along_the_first_axis_that_is_nearly_the_best(size: list[int], axis: int) -> None:
    assert inferers.plan_walk(size, [8, 8, 8], 0.5, 4, [()]).axis == axis


def test_windows_come_in_full_batches_except_at_the_end_of_large_layers() -> None:
    sizes: list[int] = []

    def network(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    sliding_window([4, 4], sw_batch_size=4)(torch.rand(1, 1, 4, 20), network)  # nine layers of one window
    assert sizes == [4, 4, 1]
    sizes.clear()
    sliding_window([4, 4], sw_batch_size=2)(torch.rand(1, 1, 22, 20), network)  # ten layers of nine windows
    assert sizes == [2, 2, 2, 2, 1] * 10


def test_slabs_run_as_the_engine_would_have_run_the_network() -> None:
    """Evaluation mode, no gradients and autocast are those of the call, not of the moment that slabs are taken."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Dropout(0.9)).train()
    image = torch.rand(1, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        (lazy,) = InSlabs(sliding_window([8, 8]))(image, network)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = sliding_window([8, 8])(image, network.eval())[0]
    network.train()
    result = torch.cat(list(lazy.slabs()), dim=1)
    assert network.training and not result.requires_grad and result.dtype == torch.float32
    assert torch.equal(result, expected) and torch.equal(lazy.tensor(), expected)
    assert not torch.equal(sliding_window([8, 8])(image, network.eval())[0], expected)  # what bfloat16 changes


def test_a_batch_of_lazy_logits_comes_apart_in_the_engine() -> None:
    images = torch.rand(2, 1, 9, 9)
    lazy = InSlabs(sliding_window([8, 8]))(images, position_weighted)
    items = decollate_batch({"image": images, "label": None, "pred": lazy})
    assert len(items) == 2 and [item["pred"] for item in items] == lazy
    assert torch.equal(InSlabs(SimpleInferer())(images, torch.nn.Identity()), images)  # others stay what they are


def test_no_room_is_said_before_the_second_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("scripts.inference.room.free_memory", lambda: 1000)
    lazy = sliding_window([8, 8]).lazily(torch.rand(1, 40, 40), lambda x: calls.append(1) or position_weighted(x))
    with pytest.raises(UserError, match="an image of 40 x 40 voxels with 2 classes needs") as caught:
        list(lazy.slabs())
    assert len(calls) == 1 and "\n" not in str(caught.value)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_bar_counts_the_windows_on_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(inferers, "SHOW_AFTER", 0)
    (lazy,) = InSlabs(sliding_window([8, 8], tta=True, mirror_axes=[0]))(torch.rand(1, 1, 8, 16), position_weighted)
    assert not stream.getvalue()
    list(lazy.slabs())
    shown = stream.getvalue()
    assert ("windows:" in shown and "/6 [" in shown) if stream.isatty() else not shown


def test_windows_of_any_size() -> None:
    volume = torch.rand(1, 1, 20, 13, 9)
    assert torch.allclose(sliding_window([8, 16, 8])(volume, lambda x: 3 * x), 3 * volume, atol=1e-5)


def test_every_plane_is_handed_on_once() -> None:
    for size in range(1, 40):
        walk = inferers.plan_walk([max(size, 6), 9], [6, 6], 0.6, 3, [()])
        ends = [0, *(stage.finished for stage in walk.stages)]
        assert ends[-1] == [max(size, 6), 9][walk.axis] and all(low < high for low, high in pairwise(ends))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"overlap": 1}, "overlap must be"),
        ({"sw_batch_size": 0}, "sw_batch_size must be"),
        ({"mirror_axes": [0, 2]}, "of 0 to 1"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sliding_window([16, 16], **setting)
