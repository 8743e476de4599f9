"""Loading weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts.engines.checkpoints import load_weights
from scripts.errors import UserError
from scripts.networks import LightMUNet


def network(**options: str) -> LightMUNet:
    return LightMUNet(2, 1, 2, 8, **options)


def test_weights_of_another_scan_order_are_refused(tmp_path: Path) -> None:
    """Their shapes fit: without the check the predictions would be worse without a word."""
    torch.save(network().state_dict(), tmp_path / "model.pt")
    load_weights(network(scan_order="axes"), tmp_path / "model.pt")  # nothing says how they were trained
    (tmp_path / "settings.json").write_text(json.dumps({"scan_order": "raster"}))
    load_weights(network(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="trained with scan_order raster, but the network reads in axes order"):
        load_weights(network(scan_order="axes"), tmp_path / "model.pt")


def test_weights_of_another_stem_are_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match="do not fit the network; check the task overlay, init_filters and stem"):
        load_weights(network(stem="full"), tmp_path / "model.pt")
