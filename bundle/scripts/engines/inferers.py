"""Sliding windows over images of any size, slice by slice for a 2D network, each window mirrored in every way.

What windows say is summed in the planes that windows still touch (accumulator.py); finished planes are handed on as
slabs. So memory is bounded by windows, not by the image: see InSlabs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations, groupby, starmap
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from tqdm import tqdm

from ..common.command_line import from_words
from ..common.distributed import is_main_process
from ..common.errors import UserError
from ..inference.accumulator import Accumulator
from ..inference.logits import LazyLogits, planes_of_slab
from ..inference.room import place_of
from ..inference.windows import Item, gaussian_weights, padding, plan_walk
from .settings_check import check_settings

__all__ = ["InSlabs", "Network", "SlidingWindow", "sliding_window"]

SHOW_AFTER = 3  # seconds that an image takes before its windows get a progress bar of their own
logger = logging.getLogger("lightm_unet")

Network = Callable[..., torch.Tensor]


class SlidingWindow(Inferer):
    """Mean of the logits of overlapping windows with Gaussian weights, each averaged over its mirror images.

    Mirroring a window instead of the whole image (nnU-Net's way too) gives the same where windows lie symmetrically:
    where along each mirrored axis the image is a whole number of steps longer than a window, or an even number of
    voxels shorter.

    Args:
        patch_size: of the image's dimensions; 1 along ``slice_axis``.
        overlap: of neighbouring windows, as a share of their size.
        sw_batch_size: windows that the network gets at once; each mirror image counts.
        mirror_axes: spatial axes to mirror, 0 being the first after batch and channels; n axes give 2^n passes.
        slice_axis: axis along which a 2D network walks through volumes, or None.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        overlap: float = 0.5,
        sw_batch_size: int = 4,
        mirror_axes: Sequence[int] = (),
        slice_axis: int | None = None,
    ) -> None:
        super().__init__()
        self.patch_size, self.overlap, self.sw_batch_size = tuple(patch_size), overlap, sw_batch_size
        self.slice_axis = slice_axis
        counts = range(len(mirror_axes) + 1)
        self.flips = list(chain.from_iterable(combinations(mirror_axes, count) for count in counts))

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Inputs (batch, channels, *spatial) to logits (batch, classes, *spatial), float32 or more."""
        return self.whole(inputs, network, args, kwargs)

    def whole(
        self,
        inputs: torch.Tensor,
        network: Network,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        members: Sequence[Callable[[], None]] = (),
    ) -> torch.Tensor:
        """The same, of several models; see lazily."""
        call = partial(network, *args, **(kwargs or {})) if args or kwargs else network
        logits = [self.lazily(image, network, call, False, members).tensor() for image in _plain(inputs)]
        return logits[0][None] if len(logits) == 1 else torch.stack(logits)  # without a copy, which may be large

    def lazily(
        self,
        image: torch.Tensor,
        network: Network,
        call: Network | None = None,
        progress: bool = False,
        members: Sequence[Callable[[], None]] = (),
    ) -> LazyLogits:
        """The logits of one image (channels, *spatial), computed when they are taken.

        Args:
            network: takes (batch, channels, *patch).
            call: calls it; None: just so.
            progress: whether to show a bar of the windows with the time left, where an image takes long.
            members: each gives the network the weights of one of the models whose logits are averaged; none: its own.
        """
        run = _Run(self, image, call or network, members, progress)
        return LazyLogits(run.walk.axis, tuple(image.shape[1:]), run.slabs, run.tensor)


class InSlabs(Inferer):
    """Gives LazyLogits, from which postprocessing takes slab by slab, in place of the tensor of an image's logits.

    The network runs when they are taken, in evaluation mode and under the autocast of this call.

    Args:
        inferer: a SlidingWindow or an Ensemble; any other is called as ever, and gives its tensor.
        progress: see SlidingWindow.lazily.
    """

    def __init__(self, inferer: Inferer, progress: bool = True) -> None:
        super().__init__()
        self.inferer, self.progress = inferer, progress

    def __call__(self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any) -> Any:
        """Inputs (batch, channels, *spatial) to LazyLogits, one an image."""
        if not hasattr(self.inferer, "lazily"):
            return self.inferer(inputs, network, *args, **kwargs)
        later = _as_now(network, inputs.device.type, args, kwargs)
        return [self.inferer.lazily(image, network, later, self.progress) for image in _plain(inputs)]


@from_words
def sliding_window(
    patch_size: Sequence[int],
    overlap: float = 0.5,
    sw_batch_size: int = 4,
    tta: bool = False,
    mirror_axes: Sequence[int] = (),
    slice_axis: int | None = None,
) -> SlidingWindow:
    """Windows of the patch's size with Gaussian weights, as nnU-Net; where a GPU has no room for what they say of an
    image, it is collected on the host.

    Args:
        patch_size: of the network's dimensions.
        overlap: of neighbouring windows, as a share of their size.
        sw_batch_size: windows that the network gets at once.
        tta: also average over the mirror images.
        mirror_axes: axes of the patch that ``tta`` mirrors.
        slice_axis: axis along which a 2D network walks through volumes, or None.

    Raises:
        UserError: the overlap is not below 1, there is no window at once, or a mirror axis is none of the patch's.
    """
    check_settings(overlap=overlap, sw_batch_size=sw_batch_size)
    if not all(axis in range(len(patch_size)) for axis in mirror_axes):
        raise UserError(f"mirror_axes must be of 0 to {len(patch_size) - 1}, the patch's axes, not {list(mirror_axes)}")
    axes, patch = list(mirror_axes), list(patch_size)
    if slice_axis is not None:
        axes = [axis + (axis >= slice_axis) for axis in axes]  # of the patch -> of the volume
        patch.insert(slice_axis, 1)
    return SlidingWindow(patch, overlap, sw_batch_size, axes if tta else (), slice_axis)


class _Run:
    """One image on its way through the network."""

    def __init__(
        self,
        inferer: SlidingWindow,
        image: torch.Tensor,
        network: Network,
        members: Sequence[Callable[[], None]],
        progress: bool,
    ) -> None:
        self.inferer, self.network, self.progress = inferer, network, progress
        self.members = list(members) or [lambda: None]
        self.image, self.size = image, tuple(image.shape[1:])
        self.margins = padding(self.size, inferer.patch_size)
        padded = [length + sum(margin) for length, margin in zip(self.size, self.margins, strict=True)]
        self.padded = tuple(padded)
        self.walk = plan_walk(padded, inferer.patch_size, inferer.overlap, inferer.sw_batch_size, inferer.flips)
        axes = [axis for axis in range(len(padded)) if axis != inferer.slice_axis]
        self.weights = gaussian_weights(inferer.patch_size, axes, image.device)
        self.held: Accumulator | None = None

    def slabs(self) -> Iterator[torch.Tensor]:
        axis, done = self.walk.axis, 0
        low = self.margins[axis][0]
        high = low + self.size[axis]
        others = [self._inside(other) for other in range(len(self.size)) if other != axis]
        for stage_end in self._advance(self.walk.planes):
            first, last = max(done, low), min(stage_end, high)
            most = planes_of_slab(self.held.total.narrow(axis + 1, 0, 1))
            for mean in self.held.take(first, last, most):
                yield mean[(slice(None), slice(None), *others)]
            done = stage_end
        self.held = None

    def tensor(self) -> torch.Tensor:
        for _ in self._advance(self.padded[self.walk.axis]):
            pass
        mean, self.held = self.held.mean(), None
        return mean[(slice(None), *map(self._inside, range(len(self.size))))]

    def _inside(self, axis: int) -> slice:
        low = self.margins[axis][0]
        return slice(low, low + self.size[axis])

    def _advance(self, planes: int) -> Iterator[int]:
        """Run the stages one after the other; after each, up to which plane the image is finished."""
        image = self.image
        if self.padded != self.size:  # else it would be a copy
            image = torch.nn.functional.pad(image, list(chain.from_iterable(reversed(self.margins))))
        total = self.walk.items * len(self.members)
        hidden = None if self.progress and is_main_process() else True
        options = {"leave": False, "disable": hidden, "delay": SHOW_AFTER}
        with tqdm(desc="windows", total=total, unit="window", **options) as bar:
            for stage in self.walk.stages:
                for prepare in self.members:
                    prepare()
                    for batch in stage.batches:
                        self._add(batch, self._results(image, batch), planes)
                        bar.update(len(batch))
                yield stage.finished

    def _results(self, image: torch.Tensor, batch: Sequence[Item]) -> torch.Tensor:
        windows = torch.stack([_window(image, item, self.inferer.patch_size) for item in batch])
        axis = self.inferer.slice_axis
        windows = windows if axis is None else windows.squeeze(axis + 2)
        results = self._call(windows)
        if results.shape[2:] != windows.shape[2:]:
            raise ValueError(f"the network turns {tuple(windows.shape)} into {tuple(results.shape)}")
        results = results if axis is None else results.unsqueeze(axis + 2)
        return results.to(torch.promote_types(results.dtype, torch.float32))

    def _call(self, windows: torch.Tensor) -> torch.Tensor:
        try:
            return self.network(windows)
        except torch.cuda.OutOfMemoryError:
            if self.held is None or self.held.device.type == "cpu":
                raise
        # From here on the error is gone, which held on to what the network had made.
        logger.info("the GPU has no room for network and image: what the windows say is collected on the host")
        self.held.to(torch.device("cpu"))
        torch.cuda.empty_cache()
        return self.network(windows)

    def _add(self, batch: Sequence[Item], results: torch.Tensor, planes: int) -> None:
        if self.held is None:
            self.held = self._open(results, planes)
        pairs = zip(batch, results, strict=True)
        for start, same in groupby(pairs, key=lambda pair: pair[0].start):
            results_of_window = list(same)
            turned = starmap(_turned_back, results_of_window)
            values = next(turned)
            for number, other in enumerate(turned):  # the first sum is a tensor of its own: the network's is left alone
                values = values.add_(other) if number else values + other
            self.held.add(start, values, self.weights, len(results_of_window))

    def _open(self, results: torch.Tensor, planes: int) -> Accumulator:
        """The place of the sums, now that the number of classes is known."""
        axis, classes = self.walk.axis, results.shape[1]
        voxels = planes * torch.Size(self.padded).numel() // self.padded[axis]
        needed = (classes + 1) * voxels * results.element_size()
        what = f"an image of {' x '.join(map(str, self.size))} voxels with {classes} classes"
        place = place_of(needed, what, results.device)
        return Accumulator(classes, self.padded, axis, planes, results.dtype, place)


def _window(image: torch.Tensor, item: Item, patch: Sequence[int]) -> torch.Tensor:
    where = [slice(first, first + length) for first, length in zip(item.start, patch, strict=True)]
    return image[(slice(None), *where)].flip([axis + 1 for axis in item.flip])


def _turned_back(item: Item, result: torch.Tensor) -> torch.Tensor:
    return result.flip([axis + 1 for axis in item.flip]) if item.flip else result


def _plain(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs


def _as_now(network: Network, device: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Network:
    """The network as it would run now, for later: evaluating, and under the autocast that is on."""
    on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def later(windows: torch.Tensor) -> torch.Tensor:
        with eval_mode(network), torch.autocast(device, dtype, enabled=on):
            return network(windows, *args, **kwargs)

    return later
