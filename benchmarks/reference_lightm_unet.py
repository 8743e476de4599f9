"""LightM-UNet as its authors run it: every layer a plain module, feature maps in NCHW, Mamba on token copies.

The yardstick of the network benchmark. It stands apart from `scripts.networks` on purpose, so that nothing that
is made faster there can reach it. The modules bear the same names, so state_dicts go from one to the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.segresnet_block import get_upsample_layer
from monai.networks.layers.factories import Pool

__all__ = ["ReferenceLightMUNet", "mamba_ssm_block"]

MakeMamba = Callable[[int], nn.Module]
BLOCKS_DOWN, BLOCKS_UP, GROUPS = (1, 2, 2, 4), (1, 1, 1), 8


def mamba_ssm_block(channels: int) -> nn.Module:
    """The block of the package mamba-ssm, with its CUDA scan, in the authors' setting.

    Raises:
        ImportError: mamba-ssm does not run here.
    """
    from mamba_ssm.modules.mamba_simple import Mamba

    return Mamba(d_model=channels, d_state=16, d_conv=4, expand=2)


class ReferenceLightMUNet(nn.Module):
    """Input (batch, in_channels, *spatial), sizes multiples of 8; output logits (batch, out_channels, *spatial).

    Args:
        make_mamba: from the width of the tokens to a block on (batch, length, width).
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, filters: int, make_mamba: MakeMamba
    ) -> None:
        super().__init__()
        widths = [filters * 2**i for i in range(len(BLOCKS_DOWN))]
        self.stem = separable(spatial_dims, in_channels, filters)
        self.encoder = nn.ModuleList(
            EncoderStage(spatial_dims, widths[max(i - 1, 0)], width, blocks, make_mamba)
            for i, (width, blocks) in enumerate(zip(widths, BLOCKS_DOWN, strict=True))
        )
        self.decoder = nn.ModuleList(
            DecoderStage(spatial_dims, width, blocks)
            for width, blocks in zip(reversed(widths[1:]), BLOCKS_UP, strict=True)
        )
        head = separable(spatial_dims, filters, out_channels, kernel_size=1, bias=True)
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, filters), nn.ReLU(inplace=True), head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.decoder:
            x = stage(x, skips.pop())
        return self.head(x)


class VSSLayer(nn.Module):
    """LN, Mamba, scaled skip, the same LN, Linear; the image becomes tokens and an image again."""

    def __init__(self, in_channels: int, out_channels: int, make_mamba: MakeMamba) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = make_mamba(in_channels)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.mamba(self.norm(tokens)) + self.skip_scale * tokens
        mixed = self.proj(self.norm(mixed))
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class EncoderStage(nn.Module):
    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, blocks: int, make_mamba: MakeMamba
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
            self.downsample = nn.Sequential(VSSLayer(in_channels, out_channels, make_mamba), pool)
        self.blocks = nn.Sequential(*(ResidualVSSBlock(out_channels, make_mamba) for _ in range(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class ResidualVSSBlock(nn.Module):
    def __init__(self, channels: int, make_mamba: MakeMamba) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.act = nn.ReLU(inplace=True)
        self.vss1 = VSSLayer(channels, channels, make_mamba)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.vss2 = VSSLayer(channels, channels, make_mamba)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.vss1(self.act(self.norm1(x)))
        return self.vss2(self.act(self.norm2(y))) + x


class DecoderStage(nn.Module):
    def __init__(self, spatial_dims: int, in_channels: int, blocks: int) -> None:
        super().__init__()
        width = in_channels // 2
        self.reduce = Convolution(spatial_dims, in_channels, width, kernel_size=1, bias=False, conv_only=True)
        self.upsample = get_upsample_layer(spatial_dims, width, upsample_mode="nontrainable")
        self.blocks = nn.Sequential(*(ResidualConvBlock(spatial_dims, width) for _ in range(blocks)))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.upsample(self.reduce(x)) + skip)


class ResidualConvBlock(nn.Module):
    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.act = nn.ReLU(inplace=True)
        self.conv = separable(spatial_dims, channels, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = nn.GroupNorm(GROUPS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.act(self.norm1(x))) + self.skip_scale * x
        return self.act(self.norm2(y))


def separable(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3, bias: bool = False
) -> nn.Sequential:
    """A depthwise convolution, then a pointwise one."""
    options = {"bias": bias, "conv_only": True}
    return nn.Sequential(
        Convolution(spatial_dims, in_channels, in_channels, kernel_size=kernel_size, groups=in_channels, **options),
        Convolution(spatial_dims, in_channels, out_channels, kernel_size=1, **options),
    )
