"""GroupNorm and ReLU over channels-last tokens against autograd through PyTorch's own in float64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

pytest.importorskip("triton")

from fused_checks import DEVICE, assert_close, normal, truth

from scripts.ops.fused import group_norm, naive, unavailable
from scripts.ops.fused.group_norm import group_norm_relu, group_norm_relu_channels_last

pytestmark = pytest.mark.skipif(
    unavailable(torch.device(DEVICE)) is not None, reason="neither a GPU nor Triton's interpreter"
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of several tiles, combined in several rounds, at lengths that the interpreter runs in no time."""
    monkeypatch.setattr(group_norm, "TILE", 32)
    monkeypatch.setattr(group_norm, "MIN_TILES", 2)
    monkeypatch.setattr(group_norm, "TILE_COMBINE", 8)


def check(
    batch: int,
    length: int,
    C: int,
    groups: int,
    relu: bool = True,
    dtype: torch.dtype = torch.float32,
    offset: float = 2,
    tolerance: float | None = None,
) -> None:
    x = (normal(batch, length, C, dtype=dtype) + offset).requires_grad_()
    weight, bias = normal(C, seed=1).requires_grad_(), normal(C, seed=2).requires_grad_()
    dy = normal(batch, length, C, dtype=dtype, seed=3)
    arguments = (x, groups, weight, bias, 1e-5, relu)
    # Where the sign of a value near 0 depends on rounding, the gradient may take either side of the ReLU.
    exact = naive.group_norm_relu(x.double(), groups, weight.double(), bias.double(), 1e-5, relu=False)
    dy = dy.where(exact.abs() > 1e-3, torch.zeros_like(dy))
    expected, gradients = truth(naive.group_norm_relu, dy, *arguments)
    y = group_norm_relu(*arguments)
    assert_close(y, expected, tolerance)
    for actual, gradient in zip(torch.autograd.grad(y, (x, weight, bias), dy), gradients):
        assert_close(
            actual, gradient, tolerance or max(1e-5, 3e-6 * offset**2) if actual.dtype == torch.float32 else None
        )


@settings(max_examples=7, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    length=st.integers(2, 36),
    C=st.sampled_from([8, 12, 32]),
    groups=st.sampled_from([1, 2, 4]),
    relu=st.booleans(),
)
def test_any_size(small_tiles: None, batch: int, length: int, C: int, groups: int, relu: bool) -> None:
    check(batch, length, C, groups, relu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype(dtype: torch.dtype) -> None:
    check(2, 150, 64, 8, dtype=dtype)


def test_mean_much_larger_than_deviation() -> None:
    check(2, 300, 16, 8, relu=False, offset=1000, tolerance=3e-4)


def test_outlier_first(small_tiles: None) -> None:
    """A chunk whose first row says nothing about the others, as at the border of a padded image."""
    x = normal(1, 60, 8) + 500
    x[:, :3] = 0
    weight, bias = normal(8), normal(8, seed=1)
    expected, _ = truth(naive.group_norm_relu, x, x, 4, weight, bias)
    assert_close(group_norm_relu(x, 4, weight, bias), expected, 1e-5)


def test_image_stays_channels_last() -> None:
    image = normal(2, 3, 4, 5, 8).movedim(-1, 1).requires_grad_()
    weight, bias = normal(8), normal(8, seed=1)
    y = group_norm_relu_channels_last(image, 4, weight, bias)
    assert y.shape == image.shape and y.movedim(1, -1).is_contiguous()
    assert_close(y.detach(), torch.nn.functional.group_norm(image.detach(), 4, weight, bias).relu().double())
    contiguous = image.detach().contiguous()
    assert torch.equal(group_norm_relu_channels_last(contiguous, 4, weight, bias), y)


def test_compiled_is_one_operator() -> None:
    weight, bias = normal(8), normal(8, seed=1)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return group_norm_relu(x, 4, weight, bias)

    x = normal(2, 6, 8)
    calls = [str(node.target) for node in torch.export.export(Net(), (x,)).graph.nodes if node.op == "call_function"]
    assert "lightm_unet.group_norm_relu.default" in calls
    x.requires_grad_()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)(x)
    (gradient,) = torch.autograd.grad(Net()(x).sum(), x)
    assert torch.equal(torch.autograd.grad(compiled.sum(), x)[0], gradient)


def test_nan_stays_nan() -> None:
    x = normal(2, 6, 8)
    x[1, 2, 0] = float("nan")
    y = group_norm_relu(x, 4, normal(8), normal(8))
    assert y[1, :, :2].isnan().all() and y.isnan().sum() == 12


def test_nothing_to_do() -> None:
    x = normal(0, 6, 8).requires_grad_()
    weight = normal(8).requires_grad_()
    y = group_norm_relu(x, 4, weight, normal(8))
    assert y.shape == (0, 6, 8) and not torch.autograd.grad(y.sum(), weight)[0].any()


@pytest.mark.parametrize(
    ("shape", "groups", "channels", "message"),
    [((6, 8), 4, 8, "x"), ((2, 6, 8), 3, 8, "num_groups"), ((2, 6, 8), 4, 7, "weight")],
)
def test_arguments_that_do_not_fit(shape: tuple[int, ...], groups: int, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_norm_relu(torch.ones(shape), groups, torch.ones(channels), torch.ones(channels))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "length", "C"), [(2, 150_000, 32), (2, 40_001, 64), (2, 9_000, 128), (9, 1_000, 256), (2, 30_000, 48)]
)
def test_sizes_of_the_network(batch: int, length: int, C: int, dtype: torch.dtype) -> None:
    check(batch, length, C, 8, dtype=dtype, tolerance=2e-5 if dtype == torch.float32 else None)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")
def test_reproducible_and_capturable() -> None:
    x, weight, bias, dy = normal(2, 100_000, 32), normal(32), normal(32), normal(2, 100_000, 32, seed=1)

    def run() -> tuple[Tensor, ...]:
        y, statistics = group_norm.group_norm_relu_forward(x, 8, weight, bias)
        return y, statistics, *group_norm.group_norm_relu_backward(dy, x, statistics, 8, weight, bias)

    first = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    for a, b, c in zip(first, run(), captured):
        assert torch.equal(a, b) and torch.equal(a, c)
