"""Small networks as the tests of the export export them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from scripts.common import BUNDLE_ROOT
from scripts.export.__main__ import main
from scripts.networks import LightMUNet

INFERENCE = str(BUNDLE_ROOT / "configs/inference.json")
LABELS = {"first": 2, "second": 5}


# Of two stages: in 3D the first is convolutions, in 2D it is the paper's.
KINDS: dict[int, dict[str, Any]] = {
    2: {"conv_stages": 0, "scan_order": "raster", "stem": "separable"},
    3: {"conv_stages": 1, "scan_order": "axes", "stem": "full"},
}


def settings(dims: int, **others: Any) -> dict[str, Any]:
    """Ids of inference.json that make the small network."""
    tiny = {
        "spatial_dims": dims,
        "labels": LABELS,
        "patch_size": [16, 8, 24][:dims],
        "strides": [[2] * dims],
        "init_filters": 8,
        "network_def#blocks_down": [1, 1],
        "network_def#blocks_up": [1],
        "spacing": None,
        "mirror_axes": [0],
    }
    return tiny | KINDS[dims] | others


def words(ids: dict[str, Any]) -> list[str]:
    """Ids as they are typed."""
    return [word for name, value in ids.items() for word in (f"--{name}", "null" if value is None else str(value))]


def small_network(dims: int) -> LightMUNet:
    """One that gives each class some of a noisy image."""
    torch.manual_seed(0)
    network = LightMUNet(dims, 1, 3, 8, (1, 1), (1,), strides=[[2] * dims], norm_bias=1.0, **KINDS[dims]).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, *[16] * dims))
        network.head[-1][-1].conv.bias -= logits.flatten(2).mean(2)[0]
    return network


class Export:
    """The weights of a small network, and what the command makes of them once it is called."""

    def __init__(self, folder: Path, dims: int) -> None:
        self.dims, self.network = dims, small_network(dims)
        self.weights, self.onnx, self.json = (folder / name for name in ("weights.pt", "net.onnx", "net.json"))
        torch.save(self.network.state_dict(), self.weights)

    def run(self) -> Export:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's, of configs that are code
            main(["--checkpoint", str(self.weights), "--output", str(self.onnx), *words(settings(self.dims))])
        return self
