"""LightM-UNet: a UNet whose encoder is made of Mamba layers (arXiv 2403.05246), in 2D and 3D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.data import MetaTensor
from monai.networks.layers.factories import Dropout
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import UpsampleMode

from ..ops.selective_scan.numba_cpu import is_traced
from . import fused_vss
from .channels_last import to_channels_last
from .convolutions import convolution, convolve, depthwise_separable, norm_act
from .reference_weights import from_reference
from .scan_order import scan_paths
from .stage_plan import StagePlan
from .vss import VSSLayer

__all__ = ["GROUPS", "STEMS", "LightMUNet", "conv_stages_of"]

GROUPS = 8  # of GroupNorm, unless ``norm`` says otherwise
STEMS = ("separable", "full")


class LightMUNet(nn.Module):
    """LightM-UNet (Liao et al. 2024, arXiv 2403.05246).

    An encoder of residual VSS (Mamba) blocks and a light decoder of depthwise convolutions. With the
    defaults, which are the paper's, it has 5,015,766 parameters in 3D (1 -> 3 channels) and 5,011,765 in 2D (3 -> 2);
    the paper's 1.09 M and 1.87 M miscount them. ``conv_stages`` puts convolutions where images are fine.

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
        conv_stages: so many stages of the encoder, from the finest on, are residual blocks of two dense convolutions,
            and as many of the decoder transposed and dense ones; every step from stage to stage is then a strided
            convolution. 0 is the paper's network. At full resolution a convolution learns more in less time than a
            scan.
        scan_order: in which order the VSS layers read the voxels, see :func:`.scan_order.scan_paths`; the paper's is
            "raster". It changes no parameter's shape, so weights load, but only fit the order they were trained with.
        stem: the first convolution, "separable" (the paper: of one image channel it makes one filter's output in F
            intensities) or "full" (F filters over all image channels).
        norm_bias: the biases of the GroupNorms start uniformly between minus and plus this; 0 is the paper's.
            The LayerNorms take the length of a voxel's feature vector away, so that with one image channel and equal
            thresholds in all channels hardly more than the sign of the intensity reaches the first scans. Different
            thresholds turn intensities into directions from the start.
        drop_path: stochastic depth (Huang et al., arXiv 1603.09382), in training: the probability with which the last
            residual VSS block is left out for an image; the VSS blocks before it less often, in proportion.
        use_checkpoint: recompute each encoder block in the backward pass: less memory, more time. Not for norms with
            running statistics, such as BATCH.
        recompute_activations: on a GPU, compute the inside of each VSS layer, and what a dense convolution reads, again
            in the backward pass. False keeps it from the forward pass: the same result in less time, for about twenty
            times the memory of a VSS layer's input and twice that of a convolution's. A CPU keeps all always.
        backend: selective-scan backend, "auto" takes the fastest that runs on the input's device.

    Input (batch, in_channels, *spatial), float; every spatial size a multiple of the product of its axis'
    strides (``size_multiples``), 8 by default. Output (batch, out_channels, *spatial), logits.

    Raises:
        ValueError: spatial_dims is not 2 or 3, the blocks or strides do not fit together, conv_stages leaves no stage
            of VSS blocks, scan_order or stem is none of the above, drop_path is none from 0 to below 1, use_checkpoint
            meets running statistics, or (in ``forward``) the input's number of dimensions, channels or its size does
            not suit the network.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        norm: tuple | str = ("GROUP", {"num_groups": GROUPS}),
        act: tuple | str = ("RELU", {"inplace": True}),
        dropout_prob: float | None = None,
        upsample_mode: UpsampleMode | str = UpsampleMode.NONTRAINABLE,
        strides: Sequence[Sequence[int]] | None = None,
        conv_stages: int = 0,
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
        if not 0 <= conv_stages < len(blocks_down):
            raise ValueError(f"conv_stages must be 0 to {len(blocks_down) - 1}, not {conv_stages}")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.conv_stages = conv_stages
        self.scan_order = scan_order
        strides = _check_strides(strides, spatial_dims, len(blocks_down) - 1)
        if UpsampleMode(upsample_mode) == UpsampleMode.PIXELSHUFFLE and any(len(set(s)) > 1 for s in strides):
            raise ValueError("upsample_mode 'pixelshuffle' needs strides that are the same along every axis")
        self.size_multiples = tuple(math.prod(s[axis] for s in strides) for axis in range(spatial_dims))
        plan = StagePlan(
            spatial_dims=spatial_dims,
            widths=tuple(init_filters * 2**i for i in range(len(blocks_down))),
            strides=strides,
            conv_stages=conv_stages,
            norm=norm,
            act=act,
            upsample_mode=upsample_mode,
            make_vss=_vss_layers(scan_order, backend, recompute_activations),
            use_checkpoint=use_checkpoint,
            recompute_activations=recompute_activations,
        )
        self.stem = _stem(stem, spatial_dims, in_channels, init_filters)
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout_prob) if dropout_prob else nn.Identity()
        left_out = _drop_probabilities(drop_path, blocks_down, conv_stages)
        self.encoder = nn.ModuleList(plan.encoder_stage(i, left_out[i]) for i in range(len(blocks_down)))
        self.decoder = nn.ModuleList(
            plan.decoder_stage(i, blocks) for i, blocks in zip(reversed(range(len(blocks_up))), blocks_up, strict=True)
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
        if self._prefers_channels_last(x):  # throughout: two layouts cost copies in every norm, pool and sum
            x = to_channels_last(convolve(self.stem, to_channels_last(x)))
        else:
            x = convolve(self.stem, x)
        x = self.dropout(x)
        skips: list[torch.Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = stage(x, skips.pop())
        norm, act, conv = self.head
        x = convolve(conv, norm_act(norm, act, x))
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

    def _prefers_channels_last(self, x: torch.Tensor) -> bool:
        if is_traced(x):
            return False
        if x.is_cuda:  # where the kernels run; all VSS layers have one backend
            return fused_vss.unavailable(next(m for m in self.modules() if isinstance(m, VSSLayer)), x) is None
        return x.device.type == "cpu" and (self.conv_stages > 0 or not torch.is_grad_enabled())

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


def conv_stages_of(state: Mapping[str, torch.Tensor]) -> int:
    """The ``conv_stages`` of the network whose state_dict this is."""
    return next(i for i in itertools.count() if not any(key.startswith(f"encoder.{i}.blocks.0.0.") for key in state))


def _vss_layers(scan_order: str, backend: str, recompute_activations: bool) -> Callable[[int, int], VSSLayer]:
    """Makes one VSS layer after another, each with the next path of the scan order."""
    paths = scan_paths(scan_order)
    return lambda in_channels, out_channels: VSSLayer(
        in_channels, out_channels, backend, next(paths), recompute_activations
    )


def _drop_probabilities(drop_path: float, blocks_down: Sequence[int], conv_stages: int) -> list[list[float]]:
    """Of each stage's blocks: 0 for convolutions; for VSS blocks rising in proportion to their number, to
    ``drop_path`` for the last."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be 0 or more and below 1, not {drop_path}")
    numbers, count = itertools.count(1), sum(blocks_down[conv_stages:])
    return [
        [0.0 if stage < conv_stages else drop_path * next(numbers) / count for _ in range(blocks)]
        for stage, blocks in enumerate(blocks_down)
    ]


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
