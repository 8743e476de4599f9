"""The VSS layer on a GPU: one differentiable step over channels-last tokens.

The same function as `VSSLayer.forward` in vss.py, with fused kernels for what lies between the matrix products:
LayerNorm, causal convolution + SiLU, and the selective scan with its softplus, skip and gate. Backward computes
the layer's inside again, so that training holds one tensor a layer instead of two dozen, or takes less time with
what forward kept of it (`recompute_activations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops import fused
from ..ops.selective_scan import choose_backend, three_phase

if TYPE_CHECKING:
    from .vss import VSSLayer

__all__ = ["forward", "fused_vss_layer", "unavailable"]

# A batch whose layer's inside takes more than this goes item by item: each has work enough for the whole GPU.
LARGEST_INSIDE_BYTES = 2**31
# Tensors of the width of the layer's input that its inside holds at a time, backward.
INSIDE_WIDTHS = 25
# x_proj gets rows of zeros up to a multiple of this: tensor cores want the rows of bf16 and fp16 matrices so aligned.
X_PROJ_MULTIPLE = 8


class Parameters(NamedTuple):
    """Of a VSS layer, in the order of its gradients; matrices in the dtype of the matrix products."""

    norm_weight: Tensor
    norm_bias: Tensor
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_proj: Tensor
    skip_scale: Tensor
    proj: Tensor
    proj_bias: Tensor


class Inside(NamedTuple):
    """What the layer computes between its input and its output, each (batch, length, width)."""

    normed_x: Tensor
    xz: Tensor
    u: Tensor
    x_dbl: Tensor
    delta: Tensor
    A: Tensor
    y: Tensor
    saved: Tensor
    starts: Tensor
    m: Tensor
    normed: Tensor


Fields = TypeVar("Fields", Parameters, Inside)


def unavailable(layer: VSSLayer, x: Tensor) -> str | None:
    """Why this form of the layer cannot take x, (batch, channels, *spatial); None: it can.

    Only where the scan is one of the GPU's own kernels: the other backends stand for the plain network.
    """
    if (reason := fused.unavailable_for(x)) is not None:
        return reason
    backend = choose_backend(x.device, layer.mamba.backend)
    return None if backend in ("cuda", "triton") else f"the scan is {backend}'s"


def forward(layer: VSSLayer, x: Tensor) -> Tensor:
    """What `VSSLayer` computes in raster order: (batch, in_channels, *spatial) -> (batch, out_channels, *spatial)."""
    tokens = fused_vss_layer(layer, x.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def fused_vss_layer(layer: VSSLayer, tokens: Tensor) -> Tensor:
    """`VSSLayer` on tokens, (batch, length, in_channels) -> (batch, length, out_channels).

    Computes in the autocast dtype, where there is one, with fp32 inside the kernels. What it keeps for the backward
    pass, `layer.recompute_activations` decides.
    """
    mamba = layer.mamba
    parameters = Parameters(
        layer.norm.weight,
        layer.norm.bias,
        mamba.in_proj.weight,
        mamba.conv1d.weight,
        mamba.conv1d.bias,
        mamba.x_proj.weight,
        mamba.dt_proj.weight,
        mamba.dt_proj.bias,
        mamba.A_log,
        mamba.D,
        mamba.out_proj.weight,
        layer.skip_scale,
        layer.proj.weight,
        layer.proj.bias,
    )
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tokens.dtype
    backend = choose_backend(tokens.device, mamba.backend)
    # Asked here, because inside the autograd function gradients are always off.
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (tokens, *parameters))
    keep = recorded and not layer.recompute_activations
    return _FusedVSS.apply(tokens, dtype, layer.norm.eps, backend, keep, *parameters)


class _FusedVSS(torch.autograd.Function):
    """`keep`: whether backward finds the layer's inside, or only where the scan's chunks start."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, eps: float, backend: str, keep: bool, *parameters: Tensor
    ) -> Tensor:
        kept: list[Tensor] = []
        with torch.autocast("cuda", enabled=False):
            p = _cast(Parameters(*parameters), dtype)

            def output(item: Tensor) -> Tensor:
                inside = _inside(item, p, dtype, eps, backend, None, save=keep)
                kept.extend(inside if keep else [inside.starts])
                return F.linear(inside.normed, p.proj, p.proj_bias)

            out = _by_items(output, x)
        ctx.settings = dtype, eps, backend, keep
        ctx.save_for_backward(x, *parameters, *p, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        saved = iter(rest)
        parameters, p = _take(Parameters, saved), _take(Parameters, saved)
        dtype, eps, backend, keep = ctx.settings
        sums: list[Tensor] = []
        with torch.autocast("cuda", enabled=False):

            def gradient(item: Tensor, dout: Tensor) -> Tensor:
                kept = _take(Inside, saved) if keep else next(saved)
                dx, gradients = _backward(item, dout.to(dtype).contiguous(), p, dtype, eps, backend, kept)
                if sums:
                    for total, value in zip(sums, gradients, strict=True):
                        total += value
                else:
                    sums.extend(gradients)
                return dx

            dx = _by_items(gradient, x, dout)
        gradients = (  # x_proj's without those of its rows of zeros
            value[: len(like)].to(like.dtype).view_as(like) for value, like in zip(sums, parameters, strict=True)
        )
        return dx, None, None, None, None, *gradients


def _take(kind: type[Fields], tensors: Iterator[Tensor]) -> Fields:
    """The next tensors, as many as there are fields."""
    return kind(*islice(tensors, len(kind._fields)))


def _cast(p: Parameters, dtype: torch.dtype) -> Parameters:
    """The matrices in the dtype of the products, x_proj padded, the convolution's weight as (channels, width)."""
    names = ("in_proj", "x_proj", "dt_proj", "out_proj", "proj", "proj_bias")
    p = p._replace(**{name: getattr(p, name).to(dtype) for name in names})
    x_proj = F.pad(p.x_proj, (0, 0, 0, -len(p.x_proj) % X_PROJ_MULTIPLE))
    return p._replace(conv_weight=p.conv_weight.squeeze(1), x_proj=x_proj)


def _by_items(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors), for each batch item by itself where all together would take too much memory."""
    x = tensors[0]
    if x.shape[0] == 1 or x.numel() * x.element_size() * INSIDE_WIDTHS <= LARGEST_INSIDE_BYTES:
        return function(*tensors)
    out: Tensor | None = None
    for i, items in enumerate(zip(*(t.split(1) for t in tensors), strict=True)):
        result = function(*items)
        if out is None:
            out = result.new_empty(x.shape[0], *result.shape[1:])
        out[i] = result[0]
        del result
    assert out is not None
    return out


def _inside(
    x: Tensor, p: Parameters, dtype: torch.dtype, eps: float, backend: str, starts: Tensor | None, save: bool
) -> Inside:
    """`starts`: of the scan's chunks, as an earlier call returned them, or None."""
    from ..ops.fused.causal_conv import causal_conv_silu_forward
    from ..ops.fused.layer_norm import layer_norm_forward

    normed_x = layer_norm_forward(x, p.norm_weight, p.norm_bias, eps, out_dtype=dtype)
    xz = F.linear(normed_x, p.in_proj)
    before, z = xz.chunk(2, dim=-1)
    u = causal_conv_silu_forward(before, p.conv_weight, p.conv_bias)
    x_dbl = F.linear(u, p.x_proj)
    dt, B, C, _ = _split(x_dbl, p)
    delta = F.linear(dt, p.dt_proj)
    A = -torch.exp(p.A_log.float())
    y, _, saved, starts = three_phase.forward(u, delta, A, B, C, p.D, z, p.dt_bias, True, None, save, backend, starts)
    m = F.linear(y, p.out_proj)
    normed = layer_norm_forward(m, p.norm_weight, p.norm_bias, eps, residual=x, scale=p.skip_scale, out_dtype=dtype)
    return Inside(normed_x, xz, u, x_dbl, delta, A, y, saved, starts, m, normed)


def _backward(
    x: Tensor, dout: Tensor, p: Parameters, dtype: torch.dtype, eps: float, backend: str, kept: Inside | Tensor
) -> tuple[Tensor, Parameters]:
    """The gradient at x, and the parameters'.

    `kept`: the layer's inside; or the starts of the scan's chunks, with which it is computed again.
    """
    from ..ops.fused.causal_conv import causal_conv_silu_backward
    from ..ops.fused.layer_norm import layer_norm_backward

    inside = kept if isinstance(kept, Inside) else _inside(x, p, dtype, eps, backend, kept, save=True)
    normed_x, xz, u, x_dbl, delta, A, y, saved, _, m, normed = inside
    before, z = xz.chunk(2, dim=-1)
    dt, B, C, _ = _split(x_dbl, p)

    # proj, LN, out_proj
    dproj, dproj_bias = _weight_gradient(dout, normed), dout.flatten(0, -2).sum(0, dtype=torch.float32)
    dsum, dweight2, dbias2, dskip_scale = layer_norm_backward(
        dout @ p.proj, m, p.norm_weight, eps, residual=x, scale=p.skip_scale, out_dtype=dtype
    )
    dout_proj = _weight_gradient(dsum, y)
    del inside, y, m, normed  # the memory is highest from here on

    # the scan
    dxz = torch.empty_like(xz)
    dbefore, dz = dxz.chunk(2, dim=-1)
    dy = dsum @ p.out_proj
    scan = three_phase.backward(u, delta, A, B, C, p.D, z, p.dt_bias, True, saved, dy, None, backend, dz=dz)
    del dy, saved, delta
    du, ddelta = scan["u"], scan["delta"]
    dx_dbl = torch.empty_like(x_dbl)
    ddt, dB, dC, dpadding = _split(dx_dbl, p)
    torch.mm(ddelta.flatten(0, -2), p.dt_proj, out=ddt.flatten(0, -2))
    dB.copy_(scan["B"])
    dC.copy_(scan["C"])
    dpadding.zero_()
    ddt_proj, dx_proj = _weight_gradient(ddelta, dt), _weight_gradient(dx_dbl, u)
    du.flatten(0, -2).addmm_(dx_dbl.flatten(0, -2), p.x_proj)

    # convolution, in_proj, LN
    dconv_weight, dconv_bias = causal_conv_silu_backward(du, before, p.conv_weight, p.conv_bias, dbefore)
    din_proj = _weight_gradient(dxz, normed_x)
    dx, dweight1, dbias1, _ = layer_norm_backward(
        dxz @ p.in_proj, x, p.norm_weight, eps, add=dsum, add_scale=p.skip_scale
    )
    return dx, Parameters(
        dweight1 + dweight2, dbias1 + dbias2, din_proj, dconv_weight, dconv_bias, dx_proj, ddt_proj,
        scan["delta_bias"], scan["A"] * A, scan["D"], dout_proj, dskip_scale, dproj, dproj_bias,
    )  # fmt: skip


def _split(x_dbl: Tensor, p: Parameters) -> tuple[Tensor, ...]:
    """dt, B, C and the padding, which x_proj computes side by side."""
    states = p.A_log.shape[1]
    widths = [p.dt_proj.shape[1], states, states]
    return x_dbl.split([*widths, x_dbl.shape[-1] - sum(widths)], dim=-1)


def _weight_gradient(dout: Tensor, x: Tensor) -> Tensor:
    """Of a linear layer: the sum over all tokens of dout x^T."""
    return dout.flatten(0, -2).t() @ x.flatten(0, -2)
