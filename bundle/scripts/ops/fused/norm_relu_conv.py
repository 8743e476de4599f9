"""A convolution of ReLU(GroupNorm(x)) that keeps x alone for its backward pass.

PyTorch keeps x for the norm and the norm's result for the convolution. The second costs one pass over memory to
compute again, where the convolution beside it costs several, and is half of what a network of such steps holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .group_norm import group_norm_relu_again, group_norm_relu_backward, group_norm_relu_forward

__all__ = ["norm_relu_conv"]


def norm_relu_conv(
    x: Tensor,
    num_groups: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Differentiable in x and the three weights.

    Args:
        x: (batch, C, *spatial), channels-last in memory, fp32, bf16 or fp16.
        num_groups: groups of neighbouring channels; divides C.
        norm_weight, norm_bias: (C,).
        weight: (C_out, C, *kernel).
        stride, padding: of the convolution, along each axis.

    Returns:
        (batch, C_out, *spatial), channels-last in memory, in the autocast dtype, where there is one, else in x's.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return _NormReLUConv.apply(x, num_groups, norm_weight, norm_bias, eps, weight, tuple(stride), tuple(padding), dtype)


class _NormReLUConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        num_groups: int,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            y, statistics = group_norm_relu_forward(_tokens(x), num_groups, norm_weight, norm_bias, eps)
            cast = weight.to(dtype)
            conv = F.conv2d if x.dim() == 4 else F.conv3d
            out = conv(_image(y, x).to(dtype), cast, None, stride, padding)
        ctx.save_for_backward(x, statistics, norm_weight, norm_bias, weight, cast)
        ctx.num_groups, ctx.stride, ctx.padding = num_groups, stride, padding
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, norm_weight, norm_bias, weight, cast = ctx.saved_tensors
        with torch.autocast("cuda", enabled=False):
            y = group_norm_relu_again(_tokens(x), statistics, ctx.num_groups, norm_weight, norm_bias)
            dy, dweight, _ = torch.ops.aten.convolution_backward(
                dout.to(cast.dtype),
                _image(y, x).to(cast.dtype),
                cast,
                None,
                ctx.stride,
                ctx.padding,
                (1,) * len(ctx.stride),
                False,
                (0,) * len(ctx.stride),
                1,
                [True, True, False],
            )
            del y
            dx, dnorm_weight, dnorm_bias = group_norm_relu_backward(
                _tokens(dy), _tokens(x), statistics, ctx.num_groups, norm_weight, norm_bias
            )
        return _image(dx, x), None, dnorm_weight, dnorm_bias, None, dweight.to(weight.dtype), None, None, None


def _tokens(x: Tensor) -> Tensor:
    return x.movedim(1, -1).flatten(1, -2)


def _image(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens as the image that x is."""
    return tokens.view(x.movedim(1, -1).shape).movedim(-1, 1)
