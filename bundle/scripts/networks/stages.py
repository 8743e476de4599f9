"""The stages of LightM-UNet as the paper has them: residual VSS blocks in the encoder, depthwise convolutions in the
decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
from monai.networks.blocks.segresnet_block import get_upsample_layer
from monai.networks.layers import DropPath
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import UpsampleMode
from torch.utils.checkpoint import checkpoint

from .channels_last import to_channels_last
from .convolutions import convolution, convolve, depthwise_separable, in_channels_last, max_pool, norm_act, pointwise
from .vss import VSSLayer

__all__ = ["DecoderStage", "EncoderStage", "ResidualVSSBlock", "VSSDownsample"]


class EncoderStage(nn.Module):
    """A step down from the stage before, then residual blocks.

    Args:
        downsample: the step down; nothing in the first stage.
        blocks: of the stage's width.
        use_checkpoint: recompute each part in the backward pass.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], use_checkpoint: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.downsample, *self.blocks):
            recompute = self.use_checkpoint and torch.is_grad_enabled()
            x = checkpoint(part, x, use_reentrant=False) if recompute else part(x)
        return x


class VSSDownsample(nn.Sequential):
    """A VSS layer to the new width and a max-pool by ``stride``."""

    def __init__(self, spatial_dims: int, layer: VSSLayer, stride: tuple[int, ...]) -> None:
        super().__init__(layer, (nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d)(kernel_size=stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, pool = self
        return max_pool(pool, layer(x))


class ResidualVSSBlock(nn.Module):
    """norm, act, VSS, norm, act, VSS, left out for an image with probability ``drop_path``, plus the input."""

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        norm: tuple | str,
        act: tuple | str,
        make_vss: Callable[[int, int], VSSLayer],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.vss1 = make_vss(channels, channels)
        self.norm2 = get_norm_layer(norm, spatial_dims, channels)
        self.vss2 = make_vss(channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.vss1(norm_act(self.norm1, self.act, x))
        return x + self.drop_path(self.vss2(norm_act(self.norm2, self.act, y)))


class DecoderStage(nn.Module):
    """Halve the width, upsample by ``stride``, add the encoder's feature map, then residual convolution blocks."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        blocks: int,
        stride: tuple[int, ...],
        norm: tuple | str,
        act: tuple | str,
        upsample_mode: UpsampleMode | str,
    ) -> None:
        super().__init__()
        width = in_channels // 2
        self.reduce = convolution(spatial_dims, in_channels, width, kernel_size=1)
        self.upsample = get_upsample_layer(spatial_dims, width, upsample_mode, scale_factor=stride)
        self.blocks = nn.Sequential(*(ResidualConvBlock(spatial_dims, width, norm, act) for _ in range(blocks)))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.upsample(pointwise(self.reduce, x))
        return self.blocks((to_channels_last(x) if in_channels_last(skip) else x) + skip)


class ResidualConvBlock(nn.Module):
    """norm, act, depthwise-separable convolution plus the scaled input, norm, act."""

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str, act: tuple | str) -> None:
        super().__init__()
        self.norm1 = get_norm_layer(norm, spatial_dims, channels)
        self.act = get_act_layer(act)
        self.conv = depthwise_separable(spatial_dims, channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = get_norm_layer(norm, spatial_dims, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = convolve(self.conv, norm_act(self.norm1, self.act, x)) + self.skip_scale * x
        return norm_act(self.norm2, self.act, y)
