"""The VSS layer tile by tile is the VSS layer."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.autograd import forward_ad

from scripts.networks import streaming
from scripts.networks.streaming import stream_vss_layer, unavailable
from scripts.networks.vss import VSSLayer
from scripts.ops.selective_scan import BackendError, backend_report

BACKENDS = [name for name in ("numba", "chunked") if backend_report("cpu")[name] is None]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def make_layer(channels: int, out_channels: int, backend: str, dtype: torch.dtype, seed: int = 0) -> VSSLayer:
    """A layer with every parameter off its initial value."""
    torch.manual_seed(seed)
    layer = VSSLayer(channels, out_channels, backend=backend).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def assert_same(layer: VSSLayer, x: torch.Tensor, tile: int | None = None) -> None:
    with torch.no_grad():
        expected, actual = layer(x), stream_vss_layer(layer, x, tile)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= TOLERANCE[x.dtype] * expected.abs().max()


@each_backend
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    channels=st.sampled_from((2, 5, 8, 20)),
    tile=st.integers(1, 90),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    channels_last=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_size_and_tile(
    backend: str,
    batch: int,
    spatial: list[int],
    channels: int,
    tile: int,
    dtype: torch.dtype,
    channels_last: bool,
    seed: int,
) -> None:
    layer = make_layer(channels, channels + 3, backend, dtype, seed)
    x = torch.randn(batch, channels, *spatial, dtype=dtype)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert_same(layer, x, tile)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_default_tile(backend: str, dtype: torch.dtype) -> None:
    layer = make_layer(32, 64, backend, dtype)
    assert_same(layer, torch.randn(2, 32, 70, 61, dtype=dtype))


@each_backend
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(backend: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(make_layer(32, 32, backend, torch.float64), torch.randn(1, 32, 20, 20, dtype=torch.float64), 33)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@each_backend
def test_calls_from_several_threads_at_once(backend: str) -> None:
    layer, x = make_layer(16, 16, backend, torch.float32), torch.randn(1, 16, 30, 30)
    results: list[torch.Tensor] = []

    def call() -> None:
        with torch.no_grad():
            results.append(stream_vss_layer(layer, x, 50))

    workers = [threading.Thread(target=call) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(results) == 6 and all(torch.equal(result, results[0]) for result in results)


@each_backend
def test_output_is_channels_last_for_a_batch_of_one(backend: str) -> None:
    """Pooling and normalisation take their fast way only then."""
    layer = make_layer(4, 6, backend, torch.float32)
    with torch.no_grad():
        assert stream_vss_layer(layer, torch.randn(1, 4, 5, 6)).is_contiguous(memory_format=torch.channels_last)
        volume = stream_vss_layer(layer, torch.randn(1, 4, 5, 6, 7))
        assert volume.is_contiguous(memory_format=torch.channels_last_3d)


@each_backend
def test_nan_reaches_only_later_tokens(backend: str) -> None:
    layer, x = make_layer(8, 8, backend, torch.float32), torch.randn(1, 8, 10, 10)
    x[0, 3, 4, 5] = float("nan")
    with torch.no_grad():
        finite = stream_vss_layer(layer, x, 13).isfinite().all(1).flatten()
    assert finite[:45].all() and not finite[45]


def test_a_failing_tile_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_layer(8, 8, "chunked", torch.float32), torch.randn(1, 8, 20, 20)
    original, calls = streaming._TorchScan.convolve, []

    def convolve(self: streaming._TorchScan, xz: torch.Tensor, back: int) -> torch.Tensor:
        calls.append(back)
        if len(calls) == 3:
            raise MemoryError("no memory")
        return original(self, xz, back)

    monkeypatch.setattr(streaming._TorchScan, "convolve", convolve)
    with torch.no_grad(), pytest.raises(MemoryError, match="no memory"):  # not what the other threads then say
        stream_vss_layer(layer, x, 20)


def test_short_images_of_a_batch_go_side_by_side() -> None:
    layer = make_layer(16, 16, "auto", torch.float32)
    with torch.no_grad():
        assert unavailable(layer, torch.zeros(1, 16, 8, 8)) is unavailable(layer, torch.zeros(2, 16, 300, 300)) is None
        assert "side by side" in str(unavailable(layer, torch.zeros(64, 16, 8, 8)))


def test_hooks_are_called_in_inference_too() -> None:
    layer, called = make_layer(8, 8, "auto", torch.float32), []
    layer.mamba.register_forward_hook(lambda *_: called.append(True))
    with torch.no_grad():
        layer(torch.zeros(1, 8, 4, 4))
    assert called == [True]


def test_forward_mode_in_inference() -> None:
    """Streaming would drop the tangent, and with it all but the skip's share."""
    layer, x, tangent = make_layer(4, 4, "naive", torch.float64), *torch.randn(2, 1, 4, 6, 5, dtype=torch.float64)
    expected = torch.func.jvp(layer, (x,), (tangent,))[1].detach()
    with torch.no_grad(), forward_ad.dual_level():
        actual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(actual, expected)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(BackendError, match="backend='naive'"):
        make_layer(8, 8, "auto", torch.float64)(forward_ad.make_dual(*torch.randn(2, 1, 8, 6, 5, dtype=torch.float64)))


def test_when_it_can_stream() -> None:
    layer, x = make_layer(4, 4, "auto", torch.float32), torch.randn(1, 4, 6, 6)
    assert "gradients" in str(unavailable(layer, x))
    with torch.no_grad():
        assert unavailable(layer, x) is unavailable(layer, x.double()) is None
        assert all(unavailable(layer, other) for other in (x.bfloat16(), x.half(), x.to("meta")))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert "autocast" in str(unavailable(layer, x))
        seen: list[bool] = []

        class Ask(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                seen.append(unavailable(layer, x) is None)
                return x + 1

        torch.jit.trace(Ask(), x, check_trace=False)  # the check calls the module outside a trace
        torch.export.export(Ask(), (x,))
        assert seen and not any(seen)
