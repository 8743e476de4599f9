"""The layers that the export puts in a network's place compute what the network's own do, and more exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from exports import small_network

from scripts.export.layers import GroupNormInPieces, MambaWithScan, exportable
from scripts.export.scan import softplus
from scripts.networks.vss import Mamba


def test_softplus_keeps_small_values() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-100.0, 0.0, 100.0])])
    exact = F.softplus(x.double(), threshold=1000)
    found = softplus(x)
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-40)  # log(1 + e) alone gives 0 at -20
    assert softplus(torch.tensor([-float("inf"), 2.0**99])).tolist() == [0, 2.0**99]


@pytest.mark.parametrize("shape", [(2, 16, 8, 6, 10), (1, 8, 24, 24), (3, 8, 7, 11, 13)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_group_norm_in_pieces(shape: tuple[int, ...], mean: float) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(shape) + mean
    exact = nn.GroupNorm(8, shape[1]).double()
    exact.load_state_dict(norm.state_dict())
    # What a float32 of 1000 cannot tell apart is 6e-5.
    torch.testing.assert_close(
        GroupNormInPieces(norm)(x).double(), exact(x.double()), rtol=0, atol=1e-5 if mean == 0 else 5e-4
    )


def test_a_copy_is_exported_and_the_network_stays_as_it_was() -> None:
    network = small_network(2)
    before = [type(module) for module in network.modules()]
    copy = [type(module) for module in exportable(network).modules()]
    assert [type(module) for module in network.modules()] == before
    assert copy.count(MambaWithScan) == before.count(Mamba) > 0
    assert copy.count(GroupNormInPieces) == before.count(nn.GroupNorm) > 0
