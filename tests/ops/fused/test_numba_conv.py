"""The causal convolution of a CPU's training steps, against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from scripts.networks.vss import Mamba
from scripts.ops.fused import numba_conv
from scripts.ops.fused.naive import causal_conv_silu as specification
from scripts.ops.selective_scan import numba_cpu

pytestmark = pytest.mark.skipif(numba_cpu.unavailable(torch.device("cpu")) is not None, reason="numba is not installed")


def inputs(
    batch: int, length: int, channels: int, width: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, ...]:
    """x as Mamba has it, the first half of a wider tensor; weight, bias and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    x = normal(batch, length, 2 * channels).chunk(2, dim=-1)[0]
    return x, normal(channels, width), normal(channels), normal(batch, length, channels)


def outputs_and_gradients(
    function: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dy: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 12) | st.integers(numba_conv.TILE - 4, numba_conv.TILE + 4),
    blocks=st.integers(1, 3),
    width=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_of_any_shape(batch: int, length: int, blocks: int, width: int) -> None:
    tensors = inputs(batch, length, 16 * blocks, width)
    for ours, expected in zip(
        outputs_and_gradients(numba_conv.causal_conv_silu, *tensors), outputs_and_gradients(specification, *tensors)
    ):
        torch.testing.assert_close(ours, expected)


def test_a_gradient_of_another_layout() -> None:
    x, weight, bias, dy = inputs(2, 30, 16, 4)
    dy = dy.transpose(1, 2).contiguous().transpose(1, 2)
    for ours, expected in zip(
        outputs_and_gradients(numba_conv.causal_conv_silu, x, weight, bias, dy),
        outputs_and_gradients(specification, x, weight, bias, dy),
    ):
        torch.testing.assert_close(ours, expected)


def test_the_same_bits_on_any_number_of_threads() -> None:
    tensors = inputs(2, 3000, 32, 4, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(numba_conv.causal_conv_silu, *tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_takes_what_it_can_compute() -> None:
    x, weight, _, _ = inputs(1, 4, 16, 4, torch.float32)
    assert numba_conv.unavailable(x, weight) is None
    assert "float32" in str(numba_conv.unavailable(x.bfloat16(), weight)), "autocast"
    assert "registers" in str(numba_conv.unavailable(x[..., :15], weight))
    assert numba_conv.unavailable(x[:, :0], weight), "empty"


def test_a_mamba_block_learns_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x = Mamba(16).double(), torch.randn(2, 50, 16, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(block(x).square().sum(), list(block.parameters())))

    calls = []
    original = numba_conv.causal_conv_silu
    monkeypatch.setattr(numba_conv, "causal_conv_silu", lambda *args: calls.append(1) or original(*args))
    ours = gradients()
    assert calls
    monkeypatch.setattr(numba_conv, "unavailable", lambda *args: "this test wants the other way")
    for a, b in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert len(calls) == 1
