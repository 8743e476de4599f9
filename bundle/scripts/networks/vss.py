"""The vision state-space (VSS) layer of LightM-UNet and the Mamba block inside it."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..ops.fused import numba_conv
from ..ops.selective_scan import selective_scan
from . import fused_vss, streaming
from .channels_last import to_channels_last
from .scan_order import RASTER, ScanPath

__all__ = ["Mamba", "VSSLayer"]

# Faster forms of a VSS layer, in the order of preference: `unavailable(layer, x)` says why one cannot take x (None: it
# can), `forward(layer, x)` computes what the plain lines of `VSSLayer` do.
_FORMS = (fused_vss, streaming)


class Mamba(nn.Module):
    """Selective state-space block on a sequence (Gu and Dao 2023, arXiv 2312.00752, section 3.4).

    Args:
        d_model: channels of a token.
        d_state: size N of each channel's hidden state.
        d_conv: width of the causal depthwise convolution.
        expand: the inner width is ``expand * d_model``.
        backend: selective-scan backend, see :func:`scripts.ops.selective_scan.selective_scan`.

    Input and output: (batch, length, d_model), float32, or the autocast dtype.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, backend: str = "auto"
    ) -> None:
        super().__init__()
        d_inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.backend = backend
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._reset_dt()

    def _reset_dt(self, dt_min: float = 1e-3, dt_max: float = 1e-1, dt_floor: float = 1e-4) -> None:
        """Start each channel's step size log-uniformly in [dt_min, dt_max], so memories differ in length."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        log_dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max))
        dt = log_dt.exp().clamp(min=dt_floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self._causal_conv_silu(u)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            -torch.exp(self.A_log.float()),
            B,
            C,
            D=self.D,
            z=z,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            backend=self.backend,
        )
        return self.out_proj(y)

    def _causal_conv_silu(self, u: torch.Tensor) -> torch.Tensor:
        """SiLU of a depthwise convolution over (batch, length, channels) that sees only the past."""
        if self.backend in ("auto", "numba") and numba_conv.unavailable(u, self.conv1d.weight) is None:
            return numba_conv.causal_conv_silu(u, self.conv1d.weight.squeeze(1), self.conv1d.bias)
        length = u.shape[1]
        return F.silu(self.conv1d(u.transpose(1, 2))[..., :length].transpose(1, 2))


class VSSLayer(nn.Module):
    """LN -> Mamba, plus a scaled skip, LN -> Linear (LightM-UNet, arXiv 2403.05246, figure 3).

    Both LayerNorms are one and the same module, as in the authors' code.

    Args:
        in_channels, out_channels: widths before and after the closing linear projection.
        backend: selective-scan backend.
        path: the order in which the image is read as a sequence; the paper's is raster order.
        recompute_activations: see :class:`.LightMUNet`.

    Input (batch, in_channels, *spatial), output (batch, out_channels, *spatial).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        backend: str = "auto",
        path: ScanPath = RASTER,
        recompute_activations: bool = True,
    ) -> None:
        super().__init__()
        self.path = path
        self.recompute_activations = recompute_activations
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = Mamba(in_channels, backend=backend)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [self._along(path, x) for path in self.path.ways()]
        return outputs[0] if len(outputs) == 1 else (outputs[0] + outputs[1]) / 2

    def _along(self, path: ScanPath, x: torch.Tensor) -> torch.Tensor:
        if path == RASTER:
            return self._in_raster_order(x)
        x = to_channels_last(path.lay_out(x))
        return to_channels_last(path.undo(self._in_raster_order(x)))

    def _in_raster_order(self, x: torch.Tensor) -> torch.Tensor:
        for form in _FORMS:
            if form.unavailable(self, x) is None:
                return form.forward(self, x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.mamba(self.norm(tokens)) + self.skip_scale * tokens
        tokens = self.proj(self.norm(tokens))
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])
