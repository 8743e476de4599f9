"""Depthwise convolution over channels-last images against autograd through PyTorch's own in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

pytest.importorskip("triton")

from fused_checks import DEVICE, assert_close, normal, truth

from scripts.ops.fused import depthwise_conv as module
from scripts.ops.fused import naive, unavailable
from scripts.ops.fused.depthwise_conv import depthwise_conv, depthwise_conv_backward_weight, depthwise_conv_forward

pytestmark = pytest.mark.skipif(
    unavailable(torch.device(DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, several tiles a program, and two blocks of channels."""
    monkeypatch.setattr(module, "TILE_PER_BYTE", 16)
    monkeypatch.setattr(module, "TILE_WEIGHT", 64)
    monkeypatch.setattr(module, "MAX_BLOCK_C", 8)
    monkeypatch.setattr(module, "MAX_PROGRAMS", 2)


def check(*shape: int, dtype: torch.dtype = torch.float32, tolerance: float = 3e-6) -> None:
    x = normal(*shape, dtype=dtype).requires_grad_()
    weight = normal(shape[-1], 1, *(3,) * (len(shape) - 2), seed=1).requires_grad_()
    dy = normal(*shape, dtype=dtype, seed=2)
    expected, (dx, dweight) = truth(naive.depthwise_conv, dy, x, weight)
    y = depthwise_conv(x, weight)
    assert_close(y, expected)
    actual = torch.autograd.grad(y, (x, weight), dy)
    assert_close(actual[0], dx)
    assert_close(actual[1], dweight, tolerance)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2), spatial=st.lists(st.integers(1, 3), min_size=2, max_size=3), C=st.sampled_from([4, 8, 12])
)
def test_any_size(small_tiles: None, batch: int, spatial: list[int], C: int) -> None:
    check(batch, *spatial, C)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype: torch.dtype) -> None:
    check(1, 3, 5, 6, 16, dtype=dtype)


def test_nothing_to_do() -> None:
    x, weight = normal(0, 4, 4, 8), normal(8, 1, 3, 3)
    assert depthwise_conv(x, weight).shape == x.shape
    assert not depthwise_conv_backward_weight(x, x).any()


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="x"):
        depthwise_conv(torch.ones(4, 4, 8), torch.ones(8, 1, 3))
    with pytest.raises(ValueError, match="weight"):
        depthwise_conv(torch.ones(1, 4, 4, 8), torch.ones(8, 1, 3, 3, 3))
    with pytest.raises(ValueError, match="dy"):
        depthwise_conv_backward_weight(torch.ones(1, 4, 4, 8), torch.ones(1, 4, 4, 4))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 40, 64, 64, 32), (2, 20, 32, 31, 64), (2, 256, 256, 32), (2, 33, 64, 256)])
def test_sizes_of_the_network(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(*shape, dtype=dtype, tolerance=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_reproducible_and_capturable() -> None:
    x, weight, dy = normal(2, 30, 64, 64, 32), normal(32, 1, 3, 3, 3), normal(2, 30, 64, 64, 32, seed=1)

    def run() -> tuple[torch.Tensor, ...]:
        dx = module.depthwise_conv_backward_input(dy, weight)
        return depthwise_conv_forward(x, weight), dx, depthwise_conv_backward_weight(dy, x)

    first = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for a, b, c in zip(first, run(), captured):
        assert torch.equal(a, b) and torch.equal(a, c)
