"""LayerNorm with a scaled residual against autograd through PyTorch's own in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

pytest.importorskip("triton")

from fused_checks import DEVICE, assert_close, normal, truth

from scripts.ops.fused import layer_norm, naive, unavailable
from scripts.ops.fused.layer_norm import layer_norm_backward, layer_norm_forward

pytestmark = pytest.mark.skipif(
    unavailable(torch.device(DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
EPS = 1e-5


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs, and several tiles a program, at sizes that the interpreter runs in no time."""
    monkeypatch.setattr(layer_norm, "TILE_FORWARD", 64)
    monkeypatch.setattr(layer_norm, "TILE_BACKWARD", 32)
    monkeypatch.setattr(layer_norm, "MAX_PROGRAMS", 3)


def inputs(rows: int, C: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": normal(rows, C, dtype=dtype) + 2,
        "weight": normal(C, seed=1),
        "bias": normal(C, seed=2),
        "residual": normal(rows, C, dtype=dtype, seed=3),
        "scale": torch.tensor([1.3], device=DEVICE),
        "dy": normal(rows, C, dtype=dtype, seed=4),
    }


def check(rows: int, C: int, dtype: torch.dtype = torch.float32, tolerance: float = 3e-6) -> None:
    """Forward and backward, with and without the residual."""
    i = inputs(rows, C, dtype)
    plain = (i["x"], i["weight"], i["bias"], EPS)
    expected, (dx, dweight, dbias) = truth(naive.layer_norm, i["dy"], *plain)
    assert_close(layer_norm_forward(*plain), expected)
    dt, dw, db, ds = layer_norm_backward(i["dy"], i["x"], i["weight"], EPS)
    assert ds is None
    assert_close(dt, dx)
    assert_close(dw, dweight, tolerance)
    assert_close(db, dbias, tolerance)

    summed = (i["residual"], i["scale"])
    expected, (dx, dweight, dbias, _, dscale) = truth(naive.layer_norm, i["dy"], *plain, *summed)
    assert_close(layer_norm_forward(*plain, *summed), expected)
    dt, dw, db, ds = layer_norm_backward(i["dy"], i["x"], i["weight"], EPS, *summed)
    assert_close(dt, dx)
    assert_close(dw, dweight, tolerance)
    assert_close(db, dbias, tolerance)
    # A sum of rows * C terms of either sign may be small: its error is that of the terms.
    assert (ds - dscale).abs().item() <= tolerance * (dx * i["residual"]).abs().sum().item()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 40), C=st.sampled_from([8, 12, 32, 33]))
def test_any_number_of_rows_and_channels(small_tiles: None, rows: int, C: int) -> None:
    check(rows, C)


@each_dtype
def test_every_dtype(dtype: torch.dtype) -> None:
    check(70, 64, dtype)


def test_widest() -> None:
    check(9, 512)


def test_gradient_may_be_added_and_scaled() -> None:
    i = inputs(20, 32)
    add = normal(20, 32, seed=5)
    _, (dx, *_) = truth(naive.layer_norm, i["dy"], i["x"], i["weight"], i["bias"], EPS)
    arguments = (i["dy"], i["x"], i["weight"], EPS)
    assert_close(layer_norm_backward(*arguments, add=add)[0], dx + add)
    assert_close(layer_norm_backward(*arguments, add=add, add_scale=i["scale"])[0], dx + i["scale"].double() * add)


def test_other_dtypes_of_residual_and_result() -> None:
    i = inputs(20, 32)
    half = i["x"].bfloat16()
    arguments = (half, i["weight"], i["bias"], EPS, i["residual"], i["scale"])
    expected, (dx, *_) = truth(naive.layer_norm, i["dy"], *arguments)
    assert_close(layer_norm_forward(*arguments, out_dtype=torch.float32), expected)
    dt = layer_norm_backward(i["dy"], half, i["weight"], EPS, i["residual"], i["scale"], out_dtype=torch.float32)[0]
    assert_close(dt, dx)


def test_mean_much_larger_than_deviation() -> None:
    x, weight, bias = normal(20, 32) + 1000, normal(32), normal(32, seed=1)
    expected, _ = truth(naive.layer_norm, x, x, weight, bias, EPS)
    assert_close(layer_norm_forward(x, weight, bias, EPS), expected, 1e-4)


def test_no_rows_and_further_dimensions() -> None:
    weight, bias = normal(8), normal(8, seed=1)
    empty = normal(0, 8)
    assert layer_norm_forward(empty, weight, bias).shape == (0, 8)
    assert layer_norm_backward(empty, empty, weight)[1].tolist() == [0] * 8
    x = normal(2, 8, 3).transpose(1, 2)  # not contiguous
    assert_close(layer_norm_forward(x, weight, bias, EPS), truth(naive.layer_norm, x, x, weight, bias, EPS)[0])


def test_nan_stays_nan() -> None:
    x = normal(3, 8)
    x[1, 2] = float("nan")
    assert layer_norm_forward(x, normal(8), normal(8)).isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(7)}, "weight"),
        ({"residual": torch.ones(2, 8)}, "residual"),
        ({"scale": None}, "together"),
        ({"scale": torch.ones(2)}, "scale"),
        ({"x": torch.ones(3, 8, dtype=torch.float64)}, "float64"),
    ],
)
def test_arguments_that_do_not_fit(change: dict[str, Tensor | None], message: str) -> None:
    i = inputs(3, 8)
    i.pop("dy")
    with pytest.raises(ValueError, match=message):
        layer_norm_forward(**{**i, **change})


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "C"), [(300_000, 32), (70_001, 64), (30_000, 128), (9_000, 256), (5, 512)])
def test_sizes_of_the_network(rows: int, C: int, dtype: torch.dtype) -> None:
    check(rows, C, dtype, tolerance=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_reproducible_and_capturable() -> None:
    i = inputs(200_000, 32)
    arguments = (i["dy"], i["x"], i["weight"], EPS, i["residual"], i["scale"])
    first = layer_norm_backward(*arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer_norm_backward(*arguments)
    graph.replay()
    for a, b, c in zip(first, layer_norm_backward(*arguments), captured):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_on_a_device_that_is_not_current() -> None:
    x, weight = torch.randn(50, 32, device="cuda:1"), torch.ones(32, device="cuda:1")
    expected = torch.nn.functional.layer_norm(x, (32,), weight)
    assert_close(layer_norm_forward(x, weight, torch.zeros_like(weight)), expected.double())
