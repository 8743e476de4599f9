"""LightM-UNet: a UNet whose encoder is made of Mamba layers (arXiv 2403.05246), in 2D and 3D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.data import MetaTensor
from monai.networks.layers.factories import Dropout
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import UpsampleMode

from . import channels_last
from .convolutions import convolution, convolve, depthwise_separable, norm_act
from .fused_vss import can_fuse
from .reference_weights import from_reference
from .scan_order import scan_paths
from .stages import DecoderStage, EncoderStage
from .streaming import can_stream
from .vss import VSSLayer

__all__ = ["STEMS", "LightMUNet"]

STEMS = ("separable", "full")


class LightMUNet(nn.Module):
    """LightM-UNet (Liao et al. 2024, arXiv 2403.05246).

    An encoder of residual VSS (Mamba) blocks and a light decoder of depthwise convolutions. With the
    defaults it has 5,015,766 parameters in 3D (1 -> 3 channels) and 5,011,765 in 2D (3 -> 2); the paper's
    1.09 M and 1.87 M miscount them.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: image channels and classes (background included).
        init_filters: width F of the first stage; it doubles with each stage.
        blocks_down: residual VSS blocks per encoder stage.
        blocks_up: blocks per decoder stage; one entry fewer than ``blocks_down``.
        norm, act: MONAI names of the normalisation and activation, with their arguments.
        dropout_prob: probability of channel dropout after the stem, or None.
        upsample_mode: MONAI's :class:`~monai.utils.UpsampleMode`; the paper's is "nontrainable" (linear).
        strides: for each step from one encoder stage to the next, how far it pools along each spatial axis, 1 or 2;
            None pools every axis by 2 (the paper). A thin axis of anisotropic volumes is better left alone.
        scan_order: in which order the VSS layers read the voxels, see :func:`.scan_order.scan_paths`; the paper's is
            "raster". It changes no parameter's shape, so weights load, but only fit the order they were trained with.
        stem: the first convolution, "separable" (the paper: of one image channel it makes one filter's output in F
            intensities) or "full" (F filters over all image channels).
        norm_bias: the biases of the GroupNorms start uniformly between minus and plus this; 0 is the paper's.
            The LayerNorms take the length of a voxel's feature vector away, so that with one image channel and equal
            thresholds in all channels hardly more than the sign of the intensity reaches the first scans. Different
            thresholds turn intensities into directions from the start.
        drop_path: stochastic depth (Huang et al., arXiv 1603.09382), in training: the probability with which the last
            residual VSS block is left out for an image; the blocks before it less often, in proportion.
        use_checkpoint: recompute each encoder block in the backward pass: less memory, more time. Not for norms with
            running statistics, such as BATCH.
        recompute_activations: on a GPU, compute the inside of each VSS layer again in the backward pass. False keeps it
            from the forward pass: the same result in less time, for about twenty times the memory of the layer's input.
            The plain layers of a CPU keep theirs always.
        backend: selective-scan backend, "auto" takes the fastest that runs on the input's device.

    Input (batch, in_channels, *spatial), float; every spatial size a multiple of the product of its axis'
    strides (``size_multiples``), 8 by default. Output (batch, out_channels, *spatial), logits.

    Raises:
        ValueError: spatial_dims is not 2 or 3, the blocks or strides do not fit together, scan_order or stem is none
            of the above, drop_path is none from 0 to below 1, use_checkpoint meets running statistics,
            or (in ``forward``) the input's number of dimensions, channels or its size does not suit the network.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        norm: tuple | str = ("GROUP", {"num_groups": 8}),
        act: tuple | str = ("RELU", {"inplace": True}),
        dropout_prob: float | None = None,
        upsample_mode: UpsampleMode | str = UpsampleMode.NONTRAINABLE,
        strides: Sequence[Sequence[int]] | None = None,
        scan_order: str = "raster",
        stem: str = "separable",
        norm_bias: float = 0.0,
        drop_path: float = 0.0,
        use_checkpoint: bool = False,
        recompute_activations: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, not {spatial_dims}")
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                f"blocks_up needs one entry fewer than blocks_down: got {len(blocks_up)} and {len(blocks_down)}"
            )
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.scan_order = scan_order
        self.backend = backend
        strides = _check_strides(strides, spatial_dims, len(blocks_down) - 1)
        if UpsampleMode(upsample_mode) == UpsampleMode.PIXELSHUFFLE and any(len(set(s)) > 1 for s in strides):
            raise ValueError("upsample_mode 'pixelshuffle' needs strides that are the same along every axis")
        self.size_multiples = tuple(math.prod(s[axis] for s in strides) for axis in range(spatial_dims))
        widths = [init_filters * 2**i for i in range(len(blocks_down))]

        make_vss = _vss_layers(scan_order, backend, recompute_activations)
        left_out = _drop_probabilities(drop_path, blocks_down)

        self.stem = _stem(stem, spatial_dims, in_channels, init_filters)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout_prob) if dropout_prob else nn.Identity()
        self.encoder = nn.ModuleList(
            EncoderStage(spatial_dims, before, width, probabilities, stride, norm, act, make_vss, use_checkpoint)
            for before, width, probabilities, stride in zip(
                [init_filters, *widths[:-1]], widths, left_out, [None, *strides], strict=True
            )
        )
        self.decoder = nn.ModuleList(
            DecoderStage(spatial_dims, width, blocks, stride, norm, act, upsample_mode)
            for width, blocks, stride in zip(reversed(widths[1:]), blocks_up, reversed(strides), strict=True)
        )
        self.head = nn.Sequential(
            get_norm_layer(norm, spatial_dims, init_filters),
            get_act_layer(act),
            depthwise_separable(spatial_dims, init_filters, out_channels, kernel_size=1, bias=True),
        )
        if norm_bias:
            _spread_biases(self, norm_bias)
        if use_checkpoint and any(getattr(module, "track_running_stats", False) for module in self.modules()):
            raise ValueError(
                f"use_checkpoint would update the running statistics of norm {norm!r} twice a step, since it computes "
                "each encoder block twice: choose GROUP or INSTANCE, or leave out use_checkpoint"
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input(x)
        if isinstance(x, MetaTensor):  # metadata says nothing about feature maps, and tracking it is slow
            x = x.as_tensor()
        fused = can_fuse(x, self.backend)
        x = self.dropout(convolve(self.stem, x, fused))
        if fused or can_stream(x):  # one layout throughout: mixed ones cost copies in every norm, pool and sum
            x = channels_last.to_channels_last(x)
        skips: list[torch.Tensor] = []
        for stage in self.encoder:
            x = stage(x, fused)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = stage(x, skips.pop(), fused)
        norm, act, conv = self.head
        x = convolve(conv, norm_act(norm, act, x, fused), fused)
        # A network that is traced without gradients is for inference: its scans cut the gradients, so all are cut.
        return x.detach() if torch.jit.is_tracing() and not torch.is_grad_enabled() else x

    def load_reference_state_dict(self, state: dict[str, Any]) -> None:
        """Take the weights of the authors' code.

        Args:
            state: a state_dict under the authors' key names, or a whole nnU-Net checkpoint
                (``checkpoint_*.pth``), which holds one under "network_weights".

        Raises:
            ValueError: a weight is missing, unknown or of another shape; the message lists them.
        """
        self.load_state_dict(from_reference(state, self.state_dict()))

    def _check_input(self, x: torch.Tensor) -> None:
        if x.ndim != self.spatial_dims + 2:
            raise ValueError(
                f"LightMUNet has spatial_dims={self.spatial_dims} and takes a {self.spatial_dims + 2}D tensor "
                f"(batch, channels, *spatial), but got shape {tuple(x.shape)}"
            )
        if x.shape[1] != self.in_channels:
            raise ValueError(f"LightMUNet takes {self.in_channels} input channel(s), but got {x.shape[1]}")
        if 0 in x.shape:
            raise ValueError(f"LightMUNet takes at least one image of at least one voxel, but got {tuple(x.shape)}")
        if any(size % multiple for size, multiple in zip(x.shape[2:], self.size_multiples, strict=True)):
            multiples = sorted(set(self.size_multiples))
            expected = multiples[0] if len(multiples) == 1 else self.size_multiples
            raise ValueError(
                f"LightMUNet needs every spatial size to be a multiple of {expected}, but got "
                f"{tuple(x.shape[2:])}: pad the image or choose another patch size"
            )


def _vss_layers(scan_order: str, backend: str, recompute_activations: bool) -> Callable[[int, int], VSSLayer]:
    """Makes one VSS layer after another, each with the next path of the scan order."""
    paths = scan_paths(scan_order)
    return lambda in_channels, out_channels: VSSLayer(
        in_channels, out_channels, backend, next(paths), recompute_activations
    )


def _drop_probabilities(drop_path: float, blocks_down: Sequence[int]) -> list[list[float]]:
    """Of each stage's blocks, rising in proportion to the block's number, to ``drop_path`` for the last."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be 0 or more and below 1, not {drop_path}")
    numbers = itertools.count(1)
    return [[drop_path * next(numbers) / sum(blocks_down) for _ in range(blocks)] for blocks in blocks_down]


def _stem(kind: str, spatial_dims: int, in_channels: int, out_channels: int) -> nn.Sequential:
    if kind not in STEMS:
        raise ValueError(f"stem must be {' or '.join(STEMS)}, not {kind!r}")
    if kind == "full":
        return nn.Sequential(convolution(spatial_dims, in_channels, out_channels, kernel_size=3))
    return depthwise_separable(spatial_dims, in_channels, out_channels)


def _spread_biases(network: nn.Module, bound: float) -> None:
    if bound < 0:
        raise ValueError(f"norm_bias must be 0 or more, not {bound}")
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    if not norms:
        raise ValueError("norm_bias is for GroupNorm: leave norm as it is, or set norm_bias to 0")
    for norm in norms:
        nn.init.uniform_(norm.bias, -bound, bound)


def _check_strides(
    strides: Sequence[Sequence[int]] | None, spatial_dims: int, count: int
) -> tuple[tuple[int, ...], ...]:
    if strides is None:
        return ((2,) * spatial_dims,) * count
    checked = tuple(tuple(stride) for stride in strides)
    if len(checked) != count or any(len(s) != spatial_dims or not set(s) <= {1, 2} for s in checked):
        raise ValueError(
            f"strides needs {count} entries of {spatial_dims} numbers, each 1 or 2, one entry for each step between "
            f"encoder stages, not {strides}"
        )
    return checked
