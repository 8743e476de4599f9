"""Writing a network as an ONNX file, and comparing what onnxruntime makes of it with PyTorch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from ..networks import LightMUNet

__all__ = ["INPUT", "OUTPUT", "check_installed", "largest_difference", "relative_difference", "write_onnx"]

INPUT, OUTPUT = "image", "logits"
OLDEST_TORCH = (2, 8)  # the first whose exporter knows the scan operator


def check_installed(more: Sequence[str] = ()) -> None:
    """Refuse to begin without what the export needs, which the bundle's other commands do without.

    Args:
        more: packages that are needed this time.

    Raises:
        UserError: says what to install.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise UserError(f"the export needs PyTorch 2.8 or newer, this is {torch.__version__}: pip install -U torch")
    if missing := [name for name in ("onnx", "onnxscript", *more) if importlib.util.find_spec(name) is None]:
        raise UserError(f"the export needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(network: LightMUNet, patch_size: Sequence[int], path: Path) -> int:
    """Write the network for images of one size and any batch, float32.

    Input "image" (batch, channels, *patch_size), output "logits" (batch, classes, *patch_size).

    Returns:
        The nodes of the graph, those inside its scans included.
    """
    from .layers import exportable  # not before check_installed: an older PyTorch lacks what it imports

    example = torch.zeros(2, network.in_channels, *patch_size)  # 2: a batch of 1 would be kept as a constant
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            exportable(network),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        program.save(path)
    return _nodes(program.model_proto.graph)


def largest_difference(network: LightMUNet, patch_size: Sequence[int], path: Path) -> float:
    """How far onnxruntime's logits are from the network's on a random patch, as a share of the largest."""
    import onnxruntime  # an option's

    image = torch.randn(1, network.in_channels, *patch_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval()(image)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])
    return relative_difference(found, expected)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value expected."""
    return float((found - expected).abs().max() / expected.abs().max())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling which operators of other packages it does not find, and what it deprecates."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _nodes(graph: Any) -> int:
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return len(graph.node) + sum(map(_nodes, inner))
