"""Causal convolution and SiLU against autograd through PyTorch's own in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

pytest.importorskip("triton")

from fused_checks import DEVICE, assert_close, normal, truth

from scripts.ops.fused import causal_conv, naive, unavailable
from scripts.ops.fused.causal_conv import causal_conv_silu_backward, causal_conv_silu_forward

pytestmark = pytest.mark.skipif(
    unavailable(torch.device(DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs of several segments of eight positions, and two blocks of channels."""
    monkeypatch.setattr(causal_conv, "TILE_FORWARD", 16)
    monkeypatch.setattr(causal_conv, "TILE_BACKWARD", 16)
    monkeypatch.setattr(causal_conv, "MAX_BLOCK_D", 8)
    monkeypatch.setattr(causal_conv, "MIN_STEPS", 8)


def check(
    batch: int, length: int, D: int, K: int = 4, dtype: torch.dtype = torch.float32, tolerance: float = 3e-6
) -> None:
    """Forward and backward; x and dx are halves of a wider tensor."""
    both = normal(batch, length, 2 * D, dtype=dtype)
    x = both[..., :D]
    weight, bias = normal(D, K, seed=1), normal(D, seed=2)
    dy = normal(batch, length, D, dtype=dtype, seed=3)
    expected, (dx, dweight, dbias) = truth(naive.causal_conv_silu, dy, x, weight, bias)
    y = causal_conv_silu_forward(x, weight, bias)
    assert y.is_contiguous()
    assert_close(y, expected)
    dboth = torch.full_like(both, float("nan"))
    dw, db = causal_conv_silu_backward(dy, x, weight, bias, dboth[..., :D])
    assert dboth[..., D:].isnan().all()  # the other half is not touched
    assert_close(dboth[..., :D], dx)
    assert_close(dw, dweight, tolerance)
    assert_close(db, dbias, tolerance)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 2), length=st.integers(1, 36), D=st.sampled_from([4, 8, 12]), K=st.integers(1, 4))
def test_any_size_and_width(small_tiles: None, batch: int, length: int, D: int, K: int) -> None:
    check(batch, length, D, K)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype: torch.dtype) -> None:
    check(2, 50, 16, dtype=dtype)


def test_position_sees_only_the_past_of_its_own_item() -> None:
    x, weight, bias = normal(2, 20, 8), normal(8, 4), normal(8)
    y = causal_conv_silu_forward(x, weight, bias)
    x[0, 10:] = 7
    changed = causal_conv_silu_forward(x, weight, bias)
    assert torch.equal(y[0, :10], changed[0, :10]) and torch.equal(y[1], changed[1])


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of the interpreter
def test_extreme_inputs_stay_finite() -> None:
    x = normal(1, 8, 8) * 1e4
    weight, bias, dx = normal(8, 4), normal(8), torch.empty_like(x)
    dw, db = causal_conv_silu_backward(torch.ones_like(x), x, weight, bias, dx)
    for tensor in (causal_conv_silu_forward(x, weight, bias), dx, dw, db):
        assert tensor.isfinite().all()


def test_nothing_to_do() -> None:
    x, weight, bias = normal(2, 0, 8), normal(8, 4), normal(8)
    assert causal_conv_silu_forward(x, weight, bias).shape == (2, 0, 8)
    dw, db = causal_conv_silu_backward(x, x, weight, bias, torch.empty_like(x))
    assert not dw.any() and not db.any()


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.ones(4, 8), torch.ones(8, 4), torch.ones(8), "x"),
        (torch.ones(1, 4, 8), torch.ones(8, 5), torch.ones(8), "weight"),
        (torch.ones(1, 4, 8), torch.ones(8, 4), torch.ones(7), "bias"),
        (torch.ones(1, 8, 4).transpose(1, 2), torch.ones(8, 4), torch.ones(8), "stride"),
    ],
)
def test_arguments_that_do_not_fit(x: Tensor, weight: Tensor, bias: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_conv_silu_forward(x, weight, bias)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "length", "D"), [(2, 100_000, 64), (2, 30_001, 128), (1, 20_000, 256), (2, 4_096, 512), (3, 1_000, 96)]
)
def test_sizes_of_the_network(batch: int, length: int, D: int, dtype: torch.dtype) -> None:
    check(batch, length, D, dtype=dtype, tolerance=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_reproducible_and_capturable() -> None:
    x, weight, bias, dy = normal(2, 50_000, 64), normal(64, 4), normal(64), normal(2, 50_000, 64, seed=1)

    def gradients() -> tuple[Tensor, ...]:
        dx = torch.empty_like(x)
        return dx, *causal_conv_silu_backward(dy, x, weight, bias, dx)

    first = gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    graph.replay()
    for a, b, c in zip(first, gradients(), captured):
        assert torch.equal(a, b) and torch.equal(a, c)
