"""What takes the place of the paper's layers where images are fine: dense convolutions.

A scan in raster order over a million voxels is a poor neighbourhood and takes most of a network's time; a convolution
of width 3 is a good one. So the finest stages of the encoder are residual blocks of two convolutions each, every step
from stage to stage is a strided one, and the decoder goes back up by transposed ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.networks.layers.utils import get_act_layer, get_norm_layer

from .channels_last import laid_out_like
from .convolutions import norm_act, norm_act_conv, transposed

__all__ = ["ConvDecoderStage", "DenseBlock", "NormActConv"]


class NormActConv(nn.Module):
    """norm, act, convolution.

    Args:
        spatial_dims: 2 or 3.
        channels: of the input.
        norm, act: MONAI names.
        conv: the convolution.
        recompute: see :class:`.LightMUNet`'s ``recompute_activations``.
    """

    def __init__(
        self, spatial_dims: int, channels: int, norm: tuple | str, act: tuple | str, conv: nn.Module, recompute: bool
    ) -> None:
        super().__init__()
        self.norm = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.conv = conv
        self.recompute = recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return laid_out_like(norm_act_conv(self.norm, self.act, self.conv, x, self.recompute), x)


class DenseBlock(nn.Sequential):
    """Convolutions one after the other, plus the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class ConvDecoderStage(nn.Module):
    """Upsample by a transposed convolution to half the width, add the encoder's feature map, then each of ``convs``
    plus its input, and norm and act."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        stride: tuple[int, ...],
        convs: Sequence[NormActConv],
        norm: tuple | str,
        act: tuple | str,
    ) -> None:
        super().__init__()
        self.upsample = transposed(spatial_dims, in_channels, in_channels // 2, stride)
        self.blocks = nn.Sequential(*(DenseBlock(conv) for conv in convs))
        self.norm = get_norm_layer(norm, spatial_dims, in_channels // 2)
        self.act = get_act_layer(act)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return norm_act(self.norm, self.act, self.blocks(laid_out_like(self.upsample(x), skip) + skip))
