"""Time of each fused kernel at the network's sizes, beside PyTorch's own operators, as a Markdown table.

    python benchmarks/fused_kernels.py                        # fp32, the 3D network's four stages
    python benchmarks/fused_kernels.py --dtype bfloat16 --only layer_norm causal_conv

Needs an NVIDIA GPU and triton. Both sides run from CUDA graphs, so the times are the GPU's alone; the two take turns,
and a figure is the median over the rounds. GB/s is minimal traffic over time: each activation tensor counted once for
each time that the computation must pass over it (forward and backward of GroupNorm: twice, for the statistics).
Small sizes stay in the GPU's L2 cache from call to call, so their GB/s may exceed what memory can do.
PyTorch's side gets the layout that suits it (channels first for GroupNorm and the convolutions), recomputes nothing
and needs no copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.ops.fused import unavailable

# (batch, depth, height, width) and channels of the four stages; the products are 524288, 131072, 32768, 8192 rows.
STAGES = [((2, 64, 64, 64), 32), ((2, 32, 64, 32), 64), ((2, 16, 32, 32), 128), ((2, 16, 16, 16), 256)]
REPEATS = 10  # calls in one graph
ROUNDS = 20
DEVICE = torch.device("cuda")


class Case(NamedTuple):
    """`passes`: activation tensors read or written. `native` is None where PyTorch has no such operator."""

    name: str
    passes: int
    fused: Callable[[], object]
    native: Callable[[], object] | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or unavailable(torch.device(DEVICE)) is not None:
        parser.error("needs an NVIDIA GPU and triton")
    dtype = getattr(torch, arguments.dtype)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.dtype}\n")
    print("| kernel | rows | C | fused ms | GB/s | PyTorch ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    # Autograd runs a backward operator on the stream of its forward: all of it must be the stream that is captured.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for kernel in arguments.only:
            for shape, channels in STAGES:
                for case in CASES[kernel](shape, channels, dtype):
                    print(row(case, shape, channels * (2 if kernel == "causal_conv" else 1), dtype, stream), flush=True)


def row(case: Case, shape: tuple[int, ...], channels: int, dtype: torch.dtype, stream: torch.cuda.Stream) -> str:
    rows = torch.Size(shape).numel()
    times = measure([f for f in (case.fused, case.native) if f is not None], stream)
    rate = case.passes * rows * channels * dtype.itemsize / times[0] / 1e6
    native = f"{times[1]:.4f} | {times[1] / times[0]:.2f}" if case.native else "- | -"
    return f"| {case.name} | {rows} | {channels} | {times[0]:.4f} | {rate:.0f} | {native} |"


def measure(functions: list[Callable[[], object]], stream: torch.cuda.Stream) -> list[float]:
    """Milliseconds of one call of each."""
    graphs = [capture(function, stream) for function in functions]
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(ROUNDS):
        for graph, measured in zip(graphs, times):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            measured.append(start.elapsed_time(end) / REPEATS)
    return [statistics.median(measured) for measured in times]


def capture(function: Callable[[], object], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    for _ in range(3):  # compiles, and lets cuDNN choose
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(REPEATS):
            function()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def normal(*size: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Tensor:
    return torch.randn(size, device=DEVICE).to(dtype).requires_grad_(grad)


def backward(y: Tensor, inputs: tuple[Tensor, ...], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def layer_norm(shape: tuple[int, ...], C: int, dtype: torch.dtype) -> Iterator[Case]:
    from scripts.ops.fused.layer_norm import layer_norm_backward, layer_norm_forward

    rows = torch.Size(shape).numel()
    x, r = normal(rows, C, dtype=dtype), normal(rows, C, dtype=dtype)
    w, b, s = normal(C), normal(C), normal(1)
    dy, add = normal(rows, C, dtype=dtype, grad=False), normal(rows, C, dtype=dtype, grad=False)
    X, R, W, B, S = (t.detach() for t in (x, r, w, b, s))
    wn, bn, sn = (t.detach().to(dtype).requires_grad_() for t in (w, b, s))
    y = F.layer_norm(x, (C,), wn, bn)
    summed = F.layer_norm(x + sn * r, (C,), wn, bn)
    native_sum = backward(summed, (x, r, wn, bn, sn), dy)
    yield Case(
        "LN forward", 2, lambda: layer_norm_forward(X, W, B), lambda: F.layer_norm(X, (C,), wn.detach(), bn.detach())
    )
    yield Case("LN backward", 3, lambda: layer_norm_backward(dy, X, W), backward(y, (x, wn, bn), dy))
    yield Case("LN backward + s·g", 4, lambda: layer_norm_backward(dy, X, W, add=add, add_scale=S), None)
    yield Case(
        "LN(x + s·r) forward",
        3,
        lambda: layer_norm_forward(X, W, B, residual=R, scale=S),
        lambda: F.layer_norm(X + sn.detach() * R, (C,), wn.detach(), bn.detach()),
    )
    yield Case("LN(x + s·r) backward", 4, lambda: layer_norm_backward(dy, X, W, residual=R, scale=S), native_sum)


def causal_conv(shape: tuple[int, ...], C: int, dtype: torch.dtype) -> Iterator[Case]:
    from scripts.ops.fused.causal_conv import causal_conv_silu_backward, causal_conv_silu_forward

    batch, length, D = shape[0], torch.Size(shape[1:]).numel(), 2 * C
    both, dboth = normal(batch, length, 2 * D, dtype=dtype, grad=False), normal(batch, length, 2 * D, dtype=dtype)
    x, dx = both[..., :D], dboth.detach()[..., :D]
    weight, bias = normal(D, 4, grad=False), normal(D, grad=False)
    dy = normal(batch, length, D, dtype=dtype, grad=False)
    first = x.transpose(1, 2).contiguous().requires_grad_()
    wn, bn = weight[:, None].to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()

    def native() -> Tensor:
        return F.silu(F.conv1d(first, wn, bn, padding=3, groups=D)[..., :length])

    def native_forward() -> Tensor:
        with torch.no_grad():
            return native()

    yield Case("conv + SiLU forward", 2, lambda: causal_conv_silu_forward(x, weight, bias), native_forward)
    yield Case(
        "conv + SiLU backward",
        3,
        lambda: causal_conv_silu_backward(dy, x, weight, bias, dx),
        backward(native(), (first, wn, bn), dy.transpose(1, 2).contiguous()),
    )


def group_norm(shape: tuple[int, ...], C: int, dtype: torch.dtype) -> Iterator[Case]:
    from scripts.ops.fused.group_norm import group_norm_relu_backward, group_norm_relu_forward

    x = normal(shape[0], torch.Size(shape[1:]).numel(), C, dtype=dtype, grad=False)
    weight, bias, dy = normal(C, grad=False), normal(C, grad=False), torch.randn_like(x)
    _, moments = group_norm_relu_forward(x, 8, weight, bias)
    first = x.transpose(1, 2).contiguous().requires_grad_()
    wn, bn = weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()

    def native() -> Tensor:
        return F.relu(F.group_norm(first, 8, wn, bn), inplace=True)

    def native_forward() -> Tensor:
        with torch.no_grad():
            return native()

    yield Case("GN + ReLU forward", 3, lambda: group_norm_relu_forward(x, 8, weight, bias), native_forward)
    yield Case(
        "GN + ReLU backward",
        5,
        lambda: group_norm_relu_backward(dy, x, moments, 8, weight, bias),
        backward(native(), (first, wn, bn), dy.transpose(1, 2).contiguous()),
    )


def depthwise_conv(shape: tuple[int, ...], C: int, dtype: torch.dtype) -> Iterator[Case]:
    from scripts.ops.fused import depthwise_conv as fused

    for name, size in (("3D", shape), ("2D", (shape[0] * shape[1], *shape[2:]))):
        x, dy = normal(*size, C, dtype=dtype, grad=False), normal(*size, C, dtype=dtype, grad=False)
        weight = normal(C, 1, *(3,) * (len(size) - 1), grad=False)
        first, wn = x.movedim(-1, 1).contiguous().requires_grad_(), weight.to(dtype).requires_grad_()
        dy_first = dy.movedim(-1, 1).contiguous()
        conv = F.conv3d if name == "3D" else F.conv2d
        y = conv(first, wn, padding=1, groups=C)

        def both(dy: Tensor = dy, x: Tensor = x, weight: Tensor = weight) -> None:
            fused.depthwise_conv_backward_input(dy, weight)
            fused.depthwise_conv_backward_weight(dy, x)

        yield Case(
            f"depthwise {name} forward",
            2,
            lambda x=x, weight=weight: fused.depthwise_conv_forward(x, weight),
            lambda conv=conv, first=first, wn=wn: conv(first.detach(), wn.detach(), padding=1, groups=C),
        )
        yield Case(f"depthwise {name} backward", 4, both, backward(y, (first, wn), dy_first))


CASES = {
    "layer_norm": layer_norm,
    "causal_conv": causal_conv,
    "group_norm": group_norm,
    "depthwise_conv": depthwise_conv,
}

if __name__ == "__main__":
    main()
