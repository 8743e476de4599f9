"""python -m scripts.export: a trained network as ONNX, which runs without PyTorch.

Writes the network for windows of the task's patch size and any batch, and beside it, model.json for model.onnx, what
whoever runs it needs to know: how images are prepared, how windows overlap, what the classes are called. See
docs/onnx.md, and docs/examples/onnx_inference.py, which predicts an image with both. Any id of the configs can be set
as for inference: --init_filters 16.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ..common import BUNDLE_ROOT
from ..common.atomic_writing import replacing
from ..common.command_line import as_config_files, check_words
from ..common.errors import UserError, show_user_errors_plainly
from ..common.readable_json import read_json, readable_json
from ..engines.ensemble import checkpoint_paths
from ..images.outputs import check_output_file, open_folder, refuse_foreign
from ..postprocessing.apply import find_rules
from .model import Model, read_model
from .onnx_file import check_installed, largest_difference, write_onnx

__all__ = ["main"]

FORMAT = "lightm_unet_onnx"  # marks a JSON as an export's
VERSION = 1  # of what it holds
LONG = 50_000  # steps of a scan from which on they take most of the time


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line. Raises UserError, which the command line shows as one line."""
    options, overrides = _arguments(arguments)
    files = as_config_files(options.config_file)
    check_installed(["onnxruntime"] if options.check else [])
    description = _check_outputs(options.output, [*files, *checkpoint_paths(options.checkpoint)], options.overwrite)
    start, model = time.perf_counter(), read_model(files, options.checkpoint, overrides)
    open_folder(options.output.parent, "--output")
    with replacing(options.output) as network_file, replacing(description) as facts_file:
        nodes = write_onnx(model.network, model.patch_size, network_file)
        facts = {"format": FORMAT, "version": VERSION, **model.facts}
        facts_file.write_text(readable_json(facts) + "\n", encoding="utf-8")
    seconds, size = time.perf_counter() - start, options.output.stat().st_size / 1e6
    print(f"written in {seconds:.0f} s: {options.output} ({nodes:,} nodes, {size:.0f} MB) and {description}")
    _tell(model, options)


def _tell(model: Model, options: argparse.Namespace) -> None:
    """What the user should know of the file."""
    if rules := find_rules("auto", options.checkpoint):
        print(f"note: inference also applies {rules}; the exported network knows nothing of it")
    if model.longest_scan >= LONG:
        print(f"note: its longest scan takes {model.longest_scan:,} steps, one after the other, which takes time")
    if options.check:
        difference = largest_difference(model.network, model.patch_size, options.output)
        print(f"onnxruntime's logits differ from PyTorch's by at most {difference:.1e} of the largest")


def _check_outputs(output: Path, inputs: Sequence[str], overwrite: bool) -> Path:
    """The file beside ``output``, both checked; nothing is made yet.

    Raises:
        UserError: they may not be written there, or are there.
    """
    if output.suffix != ".onnx":
        raise UserError(f"--output {output} must end in .onnx")
    if not os.path.lexists(output):
        check_output_file(output, "--output", inputs)
    description = check_output_file(output.with_suffix(".json"), "--output", inputs)
    there = [file for file in (output, description) if os.path.lexists(file)]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already: add --overwrite or give another --output")
    if there and not (description.is_file() and read_json(description).get("format") == FORMAT):
        refuse_foreign(there, "--output", empty_too=True)
    return description


def _arguments(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.export",
        description=__doc__.split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    inference = str(BUNDLE_ROOT / "configs/inference.json")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="the weights")
    parser.add_argument(
        "--config_file", default=inference, help="configs/inference.json (default), or a list of it and overlays"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--check", action="store_true", help="compare onnxruntime with PyTorch on a random patch")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    options, overrides = parser.parse_known_args(arguments)
    check_words(["--config_file", options.config_file, *overrides])
    return options, overrides


if __name__ == "__main__":
    show_user_errors_plainly()
    main()
