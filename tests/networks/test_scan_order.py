"""The orders in which the VSS layers read an image."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from scripts.networks import LightMUNet
from scripts.networks.scan_order import SCAN_ORDERS, ScanPath, scan_paths
from scripts.networks.vss import VSSLayer


@pytest.mark.parametrize("spatial", [(2, 3), (2, 3, 4)])
@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("reverse", [False, True])
def test_undo_is_the_inverse(spatial: tuple[int, ...], shift: int, reverse: bool) -> None:
    x = torch.rand(2, 3, *spatial)
    path = ScanPath(shift, reverse)
    assert torch.equal(path.undo(path.lay_out(x)), x)


def test_paths_in_numbers() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert ScanPath().lay_out(x).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert ScanPath(reverse=True).lay_out(x).flatten().tolist() == [5, 4, 3, 2, 1, 0]
    assert ScanPath(shift=1).lay_out(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_orders() -> None:
    assert set(islice(scan_paths("raster"), 9)) == {ScanPath()}
    assert list(islice(scan_paths("alternating"), 3)) == [ScanPath(), ScanPath(0, True), ScanPath()]
    assert set(islice(scan_paths("bidirectional"), 9)) == {ScanPath(both_ways=True)}
    assert ScanPath(1, both_ways=True).ways() == (ScanPath(1), ScanPath(1, True))
    assert list(islice(scan_paths("axes"), 4)) == [ScanPath(), ScanPath(0, True), ScanPath(1), ScanPath(1, True)]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_a_layer_can_see(reverse: bool) -> None:
    """A voxel in the middle informs those after it along the path, and none before."""
    torch.manual_seed(0)
    layer = VSSLayer(8, 8, path=ScanPath(reverse=reverse))
    x = torch.rand(1, 8, 4, 4, requires_grad=True)
    layer(x)[0, 0, 2, 0].backward()
    seen = x.grad.abs().sum(1).flatten() > 0
    middle = 8  # of voxel (2, 0)
    assert seen[middle]
    assert not seen[:middle].any() if reverse else not seen[middle + 1 :].any()
    assert seen[middle + 1] if reverse else seen[middle - 1]


def test_both_ways_every_voxel_informs_every_other_and_mirror_images_are_alike() -> None:
    torch.manual_seed(0)
    layer = VSSLayer(8, 8, path=ScanPath(both_ways=True))
    x = torch.rand(1, 8, 4, 4, requires_grad=True)
    layer(x)[0, 0, 2, 0].backward()
    assert (x.grad.abs().sum(1) > 0).all()
    with torch.no_grad():
        assert torch.allclose(layer(x.flip(2, 3)), layer(x).flip(2, 3), atol=1e-6)


@pytest.mark.parametrize("order", SCAN_ORDERS)
@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 8)])
def test_networks_train_and_stream_alike(order: str, spatial: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = LightMUNet(len(spatial), 1, 2, 8, scan_order=order).double()  # in float32 rounding alone comes to 1e-4
    x = torch.rand(1, 1, *spatial, dtype=torch.float64)
    y = net(x)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():  # the layers stream
        assert torch.allclose(net(x), y, atol=1e-10)
    assert set(net.state_dict()) == set(LightMUNet(len(spatial), 1, 2, 8).state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("order", SCAN_ORDERS)
@pytest.mark.parametrize("spatial", [(16, 24), (8, 16, 8)])
def test_fused_layers_follow_the_path(order: str, spatial: tuple[int, ...]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    net = LightMUNet(len(spatial), 1, 2, 8, scan_order=order, stem="full", norm_bias=1.0)
    x = torch.rand(2, 1, *spatial)
    expected = net.double()(x.double())
    y = net.float().cuda()(x.cuda())
    assert torch.allclose(y.cpu().double(), expected, atol=1e-3)
