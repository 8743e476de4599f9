"""A network's layers in operations that ONNX has and that runtimes compute exactly and fast."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..networks.vss import Mamba
from .scan import selective_scan, softplus

__all__ = ["GroupNormInPieces", "MambaWithScan", "exportable"]


def exportable(network: nn.Module) -> nn.Module:
    """A copy of a network, with the same weights and function, for `torch.onnx.export`."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Mamba):
                setattr(module, name, MambaWithScan(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(module, name, GroupNormInPieces(child))
    return network


class MambaWithScan(nn.Module):
    """What a :class:`.Mamba` computes, its scan as one operator."""

    def __init__(self, mamba: Mamba) -> None:
        super().__init__()
        self.mamba = mamba

    def forward(self, x: Tensor) -> Tensor:
        """Input and output (batch, length, channels)."""
        m, length = self.mamba, x.shape[1]
        u, z = m.in_proj(x).chunk(2, dim=-1)
        u = F.silu(m.conv1d(u.transpose(1, 2))[..., :length].transpose(1, 2))
        dt, B, C = m.x_proj(u).split([m.dt_rank, m.d_state, m.d_state], dim=-1)
        y = selective_scan(u, softplus(m.dt_proj(dt)), -torch.exp(m.A_log), B, C)
        return m.out_proj((y + m.D * u) * F.silu(z))


class GroupNormInPieces(nn.Module):
    """GroupNorm whose sums go over pieces first and then over the pieces' sums.

    PyTorch exports GroupNorm as ONNX's InstanceNormalization, and onnxruntime adds all voxels of a group up in one
    float: at 64^3 voxels that errs by 3e-4. Deviations are taken from the mean before they are squared, so that a
    large mean costs nothing.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm, spatial = self.norm, x.shape[2:]
        groups, channels = norm.num_groups, x.shape[1]
        count = x[0].numel() // groups
        pieces = _pieces(count)
        deviation = x.reshape(-1, groups, pieces, count // pieces)
        deviation = deviation - deviation.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = (deviation * deviation).mean(3, keepdim=True).mean(2, keepdim=True)
        scale = torch.rsqrt(variance + norm.eps) * norm.weight.view(groups, channels // groups, 1)
        deviation = deviation.reshape(-1, groups, channels // groups, math.prod(spatial))
        result = deviation * scale + norm.bias.view(groups, channels // groups, 1)
        return result.reshape(-1, channels, *spatial)


def _pieces(count: int) -> int:
    """A divisor of count, near its square root."""
    return min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(math.log(n * n / count)))
