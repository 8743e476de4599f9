"""Starting from the weights of another training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.common.errors import UserError
from scripts.engines.pretrained import start_from
from scripts.networks import LightMUNet


def network(classes: int = 2, filters: int = 8) -> LightMUNet:
    return LightMUNet(2, 1, classes, filters)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def same(a: torch.nn.Module, b: dict[str, torch.Tensor], start: str = "") -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.state_dict().items() if key.startswith(start))


def test_weights_or_a_whole_checkpoint(weights: Path, tmp_path: Path) -> None:
    net, state = network(), torch.load(weights, weights_only=True)
    start_from(net, weights)
    assert same(net, state)
    torch.save({"network": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    net = network()
    start_from(net, str(tmp_path / "checkpoint.pt"))
    assert same(net, state)


def test_other_classes_get_a_new_head(weights: Path) -> None:
    net, state = network(classes=5), torch.load(weights, weights_only=True)
    start_from(net, weights)
    assert same(net, state, "encoder") and same(net, state, "decoder") and same(net, state, "stem")
    assert net(torch.rand(1, 1, 16, 16)).shape[1] == 5


@pytest.mark.parametrize(("pretrained", "resume"), [(None, False), ("null", "false"), ("nowhere.pt", "true")])
def test_nothing_to_load(pretrained: str | None, resume: bool | str) -> None:
    net = network()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    start_from(net, pretrained, resume)
    assert same(net, before)


def test_what_does_not_fit_is_refused_and_changes_nothing(weights: Path, tmp_path: Path) -> None:
    net = network(filters=16)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"pretrained: \d+ weights of .*model\.pt do not fit .*init_filters"):
        start_from(net, weights)
    (weights.parent / "settings.json").write_text('{"scan_order": "axes"}')
    with pytest.raises(UserError, match="trained with scan_order axes, but the network reads in raster order"):
        start_from(network(), weights)
    with pytest.raises(UserError, match=r"there are no weights at .*none\.pt: .*--pretrained"):
        start_from(net, tmp_path / "none.pt")
    assert same(net, before)
