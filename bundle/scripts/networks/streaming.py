"""The VSS layer tile by tile, for inference on a CPU: the same numbers, in a fraction of the time and memory.

A layer that runs as a whole writes a dozen tensors of the image's size to main memory and reads them back.
Here each thread takes a tile of a few thousand tokens through the whole layer inside its own cache, and
nothing of the image's size is allocated but the output. Two things reach across tiles: the convolution sees
3 tokens back, which are computed again, and the scan needs the state that the tile before left. The scan
therefore runs in groups of channels, and a tile's group waits only for the same group of the tile before:
the tiles pass through the groups one behind the other, on as many threads as there are groups.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.fused import numba_conv
from ..ops.selective_scan import choose_backend, numba_cpu
from ..ops.selective_scan.chunked import LOG2_E

if TYPE_CHECKING:
    from .vss import VSSLayer

__all__ = ["forward", "stream_vss_layer", "unavailable"]

# Floats of the widest tensor of a tile, (tokens, 2 * inner width): about what a core's own cache holds.
TILE_FLOATS = 2**18
SHORTEST_TILE, LONGEST_TILE = 128, 4096  # tokens
FEWEST_TILES = 4  # of an image of many: shorter ones go side by side through the plain layer, which then is faster
# Without Numba: elements (tokens x states x channels) of a tile, and of one step of all its chunks. Each call
# then takes much longer than Python needs to make it, and Python makes one call at a time for all threads.
TORCH_TILE_ELEMENTS, TORCH_STEP_ELEMENTS = 2**20, 2**14

_kept = threading.local()  # .scratch: what _TorchScan writes to, kept from tile to tile and layer to layer


def unavailable(layer: VSSLayer, x: Tensor) -> str | None:
    """Why this form of the layer cannot take x, or is not the way to go; None: it can and is."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return "needs a CPU, and float32 or float64"
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or numba_cpu.is_traced(x):
        return "records no gradients and knows neither autocast nor tracing"
    if any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules() if m is not layer):
        return "would not call the hooks of the layer's parts"
    if x.shape[0] > 1 and x[0, 0].numel() < FEWEST_TILES * _default_tile(layer):
        return "several short images go faster side by side through the plain layer"
    return None


def forward(layer: VSSLayer, x: Tensor) -> Tensor:
    """`stream_vss_layer` with tiles that fit the cache."""
    return stream_vss_layer(layer, x)


def stream_vss_layer(layer: VSSLayer, x: Tensor, tile: int | None = None) -> Tensor:
    """What `layer(x)` computes, equal but for rounding.

    Args:
        layer: its parameters in x's dtype.
        x: (batch, in_channels, *spatial), for which `unavailable` is None; fastest if channels_last in memory.
        tile: tokens a tile; None: what fits the cache.

    Returns:
        (batch, out_channels, *spatial), channels_last in memory.
    """
    tokens = x.flatten(2).transpose(1, 2)
    batch, length, _ = tokens.shape
    out = x.new_empty(batch, *x.shape[2:], layer.proj.out_features)
    weights = _Weights(layer)
    tile = _default_tile(layer) if tile is None else tile
    for image, image_out in zip(tokens, out.view(batch, length, -1)):
        _Stream(weights, image, image_out, tile).run()
    return out.movedim(-1, 1)  # not unflatten: that gives a batch of one strides which hide channels_last


def _default_tile(layer: VSSLayer) -> int:
    A = layer.mamba.A_log
    if choose_backend("cpu", layer.mamba.backend) != "numba":
        return max(1, TORCH_TILE_ELEMENTS // A.numel())
    return min(max(TILE_FLOATS // (2 * len(A)), SHORTEST_TILE), LONGEST_TILE)


class _Weights:
    """A layer's parameters as the tiles use them."""

    def __init__(self, layer: VSSLayer) -> None:
        mamba = layer.mamba
        self.norm, self.proj, self.skip_scale = layer.norm, layer.proj, layer.skip_scale
        self.in_proj, self.x_proj, self.out_proj = (m.weight.t() for m in (mamba.in_proj, mamba.x_proj, mamba.out_proj))
        self.dt_proj, self.dt_bias, self.D = mamba.dt_proj.weight.t(), mamba.dt_proj.bias, mamba.D
        self.dt_rank, self.d_state = mamba.dt_rank, mamba.d_state
        self.taps, self.conv_bias = mamba.conv1d.weight.squeeze(1).t().contiguous(), mamba.conv1d.bias
        self.A = -torch.exp(mamba.A_log.float()).to(mamba.D.dtype)
        self.backend = choose_backend("cpu", mamba.backend)


class _Stream:
    """One image's way through a layer: tokens (length, channels) to out (length, out channels)."""

    def __init__(self, weights: _Weights, tokens: Tensor, out: Tensor, tile: int) -> None:
        self.weights, self.tokens, self.out, self.tile = weights, tokens, out, tile
        self.tiles = math.ceil(len(tokens) / tile)
        self.threads = min(torch.get_num_threads(), self.tiles)
        self.scan = (_NumbaScan if weights.backend == "numba" else _TorchScan)(weights, tokens, self.threads, tile)
        self.order = _Order(self.scan.groups)
        self.next_tile = itertools.count()

    def run(self) -> None:
        if self.threads == 1:
            self._work()
            return
        pool = _pool(os.getpid(), torch.get_num_threads())
        wait([pool.submit(self._guarded) for _ in range(self.threads)])
        if self.order.failure is not None:
            raise self.order.failure

    def _guarded(self) -> None:
        try:
            self._work()
        except BaseException as error:  # raised again by run()
            self.order.stop(error)

    @torch.inference_mode()
    def _work(self) -> None:
        # Tiles are taken in their order, so the one that a thread waits for is always in another's hands.
        while (number := next(self.next_tile)) < self.tiles:
            self._one_tile(number)

    def _one_tile(self, number: int) -> None:
        w, start = self.weights, number * self.tile
        end = min(start + self.tile, len(self.tokens))
        back = min(len(w.taps) - 1, start)
        x = self.tokens[start - back : end].contiguous()
        if missing := -(end - start) % self.scan.chunks:  # the last tile: zeros behind the end reach no token
            x = F.pad(x, (0, 0, 0, missing))
        xz = torch.mm(w.norm(x), w.in_proj)
        u, z = self.scan.convolve(xz, back), xz[back:].chunk(2, dim=-1)[1]
        dt, B, C = torch.mm(u, w.x_proj).split([w.dt_rank, w.d_state, w.d_state], dim=-1)
        delta = torch.mm(dt, w.dt_proj)
        y = self.scan.scan(u, delta, B, C, z, lambda group: self.order.turn(number, group))
        y = torch.mm(y, w.out_proj).addcmul_(x[back:], w.skip_scale)
        torch.addmm(w.proj.bias, w.norm(y[: end - start]), w.proj.weight.t(), out=self.out[start:end])


class _Order:
    """Lets tiles through each group in their order."""

    def __init__(self, groups: int) -> None:
        self.done = [0] * groups
        self.failure: BaseException | None = None  # the first tile's that failed
        self.changed = threading.Condition()

    def stop(self, failure: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or failure
            self.changed.notify_all()

    def turn(self, tile: int, group: int) -> _Turn:
        return _Turn(self, tile, group)


class _Turn:
    def __init__(self, order: _Order, tile: int, group: int) -> None:
        self.order, self.tile, self.group = order, tile, group

    def __enter__(self) -> None:
        with self.order.changed:
            self.order.changed.wait_for(lambda: self.order.failure or self.order.done[self.group] == self.tile)
        if self.order.failure:
            raise RuntimeError("another tile of this image failed")

    def __exit__(self, *error: object) -> None:
        with self.order.changed:
            self.order.done[self.group] += 1
            self.order.changed.notify_all()


class _TorchScan:
    """Convolution and scan in plain PyTorch; one group.

    A tile is cut into chunks that run side by side, in the three phases of `chunked`: each chunk's end state
    from zero, the chunks' true start states, all states. Only the second waits for the tile before, and it is
    short: a single group keeps all threads busy.
    """

    groups = 1

    def __init__(self, weights: _Weights, tokens: Tensor, threads: int, tile: int) -> None:
        self.weights = weights
        self.A = (weights.A.t() * LOG2_E).contiguous()  # (state, channels), for exp2: see `chunked`
        self.state = torch.zeros_like(self.A)
        self.chunks = math.gcd(tile, max(1, TORCH_STEP_ELEMENTS // self.A.numel()))
        self.memory = 2 * tile * self.A.numel()

    def convolve(self, xz: Tensor, back: int) -> Tensor:
        """SiLU of the causal convolution of the first half of xz, `back` tokens shorter."""
        taps, length = self.weights.taps, len(xz) - back
        inner = taps.shape[1]
        u = self.weights.conv_bias.expand(length, inner).clone()
        for i in range(len(taps)):
            lag = len(taps) - 1 - i  # tap i sees the token `lag` earlier
            missing = max(lag - back, 0)
            u[missing:].addcmul_(xz[back - lag + missing : len(xz) - lag, :inner], taps[i])
        return F.silu(u, inplace=True)

    def scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor, turn: Callable[[int], _Turn]) -> Tensor:
        """y of a tile from the state that the tile before left; all (length, n), length a multiple of `chunks`."""
        delta = F.softplus(delta.add_(self.weights.dt_bias))
        steps = len(u) // self.chunks
        decay, h = self._scratch(2, steps, self.chunks, *self.A.shape).unbind(0)
        torch.mul(self._split(delta).unsqueeze(2), self.A, out=decay).exp2_()
        torch.mul(self._split(delta * u).unsqueeze(2), self._split(B).unsqueeze(-1), out=h)
        slots, decays = h.unbind(0), decay.unbind(0)
        end = slots[0].clone()
        for x, a in zip(slots[1:], decays[1:]):
            torch.addcmul(x, a, end, out=end)
        span = torch.mul(delta.view(self.chunks, steps, 1, -1).sum(1), self.A).exp2_()
        with turn(0):
            start = self._start_states(end, span)
        for x, a in zip(slots, decays):
            start = x.addcmul_(a, start)
        # One row times one matrix for each token: a single pass over h.
        y = torch.bmm(self._split(C).reshape(len(u), 1, -1), h.view(len(u), *self.A.shape))
        y = y.view(steps, self.chunks, -1).transpose(0, 1).reshape(u.shape)
        return y.addcmul_(u, self.weights.D).mul_(F.silu(z))

    def _split(self, x: Tensor) -> Tensor:
        """(length, n) as (steps, chunks, n)."""
        return x.unflatten(0, (self.chunks, -1)).transpose(0, 1)

    def _start_states(self, end: Tensor, span: Tensor) -> Tensor:
        """Each chunk's true start state, from its end state from zero and its decay; moves `state` on."""
        starts = torch.empty_like(end)
        state = self.state
        for start, x, a in zip(starts.unbind(0), end.unbind(0), span.unbind(0)):
            start.copy_(state)
            state = torch.addcmul(x, a, start)
        self.state = state
        return starts

    def _scratch(self, *shape: int) -> Tensor:
        flat = getattr(_kept, "scratch", None)
        if flat is None or flat.dtype != self.A.dtype or len(flat) < self.memory:
            _kept.scratch = flat = self.A.new_empty(self.memory)
        return flat[: math.prod(shape)].view(shape)


class _NumbaScan:
    """Convolution and scan by the kernels of `numba_cpu`; a group is a range of its blocks of channels."""

    def __init__(self, weights: _Weights, tokens: Tensor, threads: int, tile: int) -> None:
        self.weights, self.kernels = weights, numba_cpu.kernels()
        A = torch.where(weights.A.isnan(), math.nan, weights.A) * numba_cpu.LOG2_E
        self.A = numba_cpu.into_blocks(A).numpy()
        self.D, self.bias = (
            numba_cpu.into_blocks(t.detach()[:, None]).squeeze(-2).numpy() for t in (weights.D, weights.dt_bias)
        )
        blocks, self.chunks = len(self.A), 1
        self.groups = min(2 * threads, blocks) if threads > 1 else 1
        self.bounds = [blocks * i // self.groups for i in range(self.groups + 1)]
        self.state = tokens.new_zeros(1, *self.A.shape).numpy()
        self.starts = tokens.new_empty(1, blocks, 0, *self.A.shape[1:]).numpy()
        self.taps, self.conv_bias = weights.taps.numpy(), weights.conv_bias.detach().numpy()

    def convolve(self, xz: Tensor, back: int) -> Tensor:
        """As in _TorchScan."""
        u = xz.new_empty(len(xz) - back, self.taps.shape[1])
        numba_conv.kernels().convolve(xz.view(-1).numpy(), xz.stride(0), self.taps, self.conv_bias, back, u.numpy())
        return u

    def scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor, turn: Callable[[int], _Turn]) -> Tensor:
        """As in _TorchScan."""
        flats, strides = zip(*(numba_cpu.flat(t[None], u.dtype) for t in (u, delta, B, C, z)))
        constants = (numba_cpu.strides_array(strides), self.A, self.D, self.bias, True, True)
        y = torch.empty_like(u)
        arguments = (*flats, *constants, self.state, self.starts, y[None].numpy())
        for group in range(self.groups):
            with turn(group):
                self.kernels.forward(*arguments, self.bounds[group], self.bounds[group + 1])
        return y


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process in which PyTorch does not start threads of its own: the tiles keep all busy."""
    ready = threading.Barrier(threads + 1)

    def initialise() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="vss-tile", initializer=initialise)
    for _ in range(threads):
        pool.submit(lambda: None)
    ready.wait()
    torch.set_num_threads(threads)  # the call above also set what later threads start with
    return pool
