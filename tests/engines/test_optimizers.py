"""What decays, in the network and by the shipped configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.engines.optimizers import decay_matrices, runs_fused
from scripts.networks import LightMUNet

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"


def test_matrices_decay_and_nothing_else() -> None:
    network = LightMUNet(2, 1, 2, 8, blocks_down=(1, 1), blocks_up=(1,))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decaying, kept = decay_matrices(network, 0.3)
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.3, 0)
    decays, stays = ({names[id(parameter)] for parameter in group["params"]} for group in (decaying, kept))
    assert decays | stays == set(names.values()) and not decays & stays
    assert all(name.endswith("weight") and "norm" not in name for name in decays)
    assert {name.rpartition(".")[2] for name in stays} == {"weight", "bias", "A_log", "D", "skip_scale"}
    assert all("norm" in name or name == "head.0.weight" for name in stays if name.endswith("weight"))

    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(decay_matrices(network, 0.3), lr=0.1).step()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, before[name] * (0.97 if name in decays else 1))


@pytest.mark.parametrize(
    ("overlay", "weight_decay", "drop_path"),
    [
        ("hippocampus", [0.3, 0], 0.2),
        ("hippocampus_f16", [0.01, 0], 0),
        ("lung_xray", [0.01, 0], 0),
        ("lung_xray_f32", [0.01, 0], 0),
        ("hippocampus_paper", [1e-5], 0),
        ("lung_xray_paper", [1e-5], 0),
    ],
)
def test_shipped_recipes(overlay: str, weight_decay: list[float], drop_path: float) -> None:
    """Each as its weights were trained, or as the paper has it."""
    parser = ConfigParser()
    parser.read_config([BUNDLE / "configs" / "train.json", BUNDLE / "configs" / "tasks" / f"{overlay}.json"])
    parser.update({"bundle_root": str(BUNDLE), "device": "cpu", "network_def#blocks_down": [1, 1]})
    parser.update({"network_def#blocks_up": [1], "strides": None})
    optimizer = parser.get_parsed_content("optimizer")
    assert [group["weight_decay"] for group in optimizer.param_groups] == weight_decay
    assert parser.get_parsed_content("drop_path") == drop_path


def test_a_step_is_fused_on_a_gpu_only() -> None:
    assert runs_fused("cuda:1") and runs_fused(torch.device("cuda")) and not runs_fused("cpu")
