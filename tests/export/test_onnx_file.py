"""onnxruntime computes with the exported network what the network computes in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn as nn
from exports import Export, small_network

from scripts.export.layers import exportable
from scripts.export.onnx_file import check_installed, largest_difference, relative_difference, write_onnx
from scripts.networks import LightMUNet

MOST_NODES, LARGEST_ERROR = 2000, 1e-5


def relative_error(network: LightMUNet, file: Path, image: torch.Tensor) -> float:
    with torch.no_grad():
        exact = network.double()(image.double()).numpy()
    network.float()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": image.numpy()})
    assert found.dtype == np.float32 and found.shape == exact.shape
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_computes_the_same(dims: int, batch: int, request: pytest.FixtureRequest) -> None:
    export: Export = request.getfixturevalue(f"export_{dims}d")
    torch.manual_seed(batch)
    image = torch.randn(batch, 1, *[16, 8, 24][:dims])
    assert relative_error(export.network, export.onnx, image) <= LARGEST_ERROR


def test_each_scan_is_one_operator(export_3d: Export) -> None:
    """Not a loop that was written out: the file's size does not depend on the patch."""
    graph = onnx.load(export_3d.onnx).graph
    layers = sum(type(module).__name__ == "VSSLayer" for module in export_3d.network.modules())
    assert [node.op_type for node in graph.node].count("Scan") == layers == 2
    assert {dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim} == {
        "batch",
        1,
        16,
        8,
        24,
    }


def test_three_convolution_stages_and_scans_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"scan_order": "bidirectional", "strides": [[2, 2, 1], [2, 2, 2], [2, 2, 1]]}
    network = LightMUNet(3, 2, 3, 8, (1, 1, 1, 1), (1, 1, 1), norm_bias=1.0, conv_stages=3, **options).eval()
    file = tmp_path / "net.onnx"
    nodes = write_onnx(network, [16, 8, 4], file)
    graph = onnx.load(file).graph
    inside = [node for scan in graph.node for attribute in scan.attribute for node in attribute.g.node]
    assert nodes == len(graph.node) + len(inside) <= MOST_NODES and len(inside) >= 4 * 6
    assert relative_error(network, file, torch.randn(3, 2, 16, 8, 4)) <= LARGEST_ERROR


def test_a_group_of_many_voxels(tmp_path: Path) -> None:
    """PyTorch's own export of GroupNorm errs by 3e-4 here."""
    torch.manual_seed(0)
    image, norm = torch.relu(torch.randn(1, 8, 64, 64, 64)), nn.GroupNorm(8, 8)
    exact = norm.double()(image.double()).detach()
    file = tmp_path / "norm.onnx"
    torch.onnx.export(exportable(nn.Sequential(norm.float())), (image,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert relative_difference(torch.from_numpy(found), exact) <= 1e-6


def test_the_check_sees_another_network(export_2d: Export) -> None:
    assert largest_difference(export_2d.network, [16, 8], export_2d.onnx) <= LARGEST_ERROR
    other = small_network(2)
    with torch.no_grad():
        other.encoder[1].blocks[0].vss1.mamba.D.mul_(1.01)
    assert largest_difference(other, [16, 8], export_2d.onnx) > 10 * LARGEST_ERROR


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match="the export needs onnxscript: pip install onnxscript"):
        check_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else name)
    check_installed()
    with pytest.raises(ValueError, match="pip install onnxruntime"):
        check_installed(["onnxruntime"])
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    with pytest.raises(ValueError, match=r"2\.8 or newer, this is 2\.4\.1"):
        check_installed()
