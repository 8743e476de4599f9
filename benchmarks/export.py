"""Export networks as ONNX, and time them in onnxruntime against PyTorch.

    python benchmarks/export.py                                            # a quarter of an hour on two cores
    python benchmarks/export.py --threads 1 --json benchmarks/results/export_cpu.json
    python benchmarks/export.py --from-json FILE.json

A row: seconds of the export (wall clock and processor), nodes, MB of the file, error, the forward pass of one image in
each. Errors are the largest difference of a logit from the network in float64, as a share of the largest logit;
PyTorch's own is beside it. PyTorch and onnxruntime take turns, with as many threads; a time is the median over rounds,
"times PyTorch" the median of the rounds' ratios. With one thread it is the processor's time, which the machine's other
work hardly lengthens. Random weights, but for those that the bundle ships.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from harness import Results, environment_line, guarded, load_results, markdown_table, number

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))

from scripts.export.model import read_model
from scripts.export.onnx_file import relative_difference, write_onnx
from scripts.networks import LightMUNet

if TYPE_CHECKING:
    import onnxruntime

BENCHMARK = "export"
REPOSITORY = Path(__file__).parents[1]
LARGEST_IN_FLOAT64 = 2**18  # voxels; a convolution of more takes PyTorch many gigabytes there
DEFAULT: dict[str, Any] = {"stem": "full", "scan_order": "axes", "norm_bias": 1.0, "conv_stages": 3}
CONFIGS = REPOSITORY / "bundle/configs"

Network = tuple[LightMUNet, tuple[int, ...]]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.from_json:
        print(report(load_results(options.from_json, BENCHMARK)))
        return
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    versions = {name: metadata.version(name) for name in ("onnxruntime", "onnx", "onnxscript")}
    results = Results(options.json, BENCHMARK, device, {"versions": versions}, resume=options.resume)
    for name in options.networks:
        row = results.row(network=name)
        if "times" not in row:
            with guarded(row, results, device), tempfile.TemporaryDirectory() as folder:
                measure(row, *NETWORKS[name](options.filters), Path(folder) / "network.onnx", options.rounds)
    print(report(results.content))


def measure(row: dict[str, Any], network: LightMUNet, size: tuple[int, ...], file: Path, rounds: int) -> None:
    """Fill a row."""
    network.eval()
    torch.manual_seed(1)
    image = torch.randn(1, network.in_channels, *size)
    row |= {"shape": "x".join(map(str, image.shape)), "conv_stages": network.conv_stages}
    wall, processor = time.perf_counter(), time.process_time()
    nodes = write_onnx(network, size, file)
    row |= {"export_s": time.perf_counter() - wall, "export_cpu_s": time.process_time() - processor}
    row |= {"nodes": nodes, "megabytes": file.stat().st_size / 1e6}
    session = _session(file)

    @torch.inference_mode()
    def with_torch() -> torch.Tensor:
        return network(image)

    def with_onnx() -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])

    found, own = with_onnx(), with_torch()  # which also warms up
    row["times"] = _in_turns({"torch": with_torch, "onnx": with_onnx}, rounds)
    row["other_labels"] = float((found.argmax(1) != own.argmax(1)).float().mean())
    if image[0, 0].numel() <= LARGEST_IN_FLOAT64:
        with torch.inference_mode():
            exact = network.double()(image.double())
        row |= {"error": relative_difference(found, exact), "torch_error": relative_difference(own, exact)}


def _in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, round by round."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append((clock() - start) * 1e3)
    return times


def _session(file: Path) -> onnxruntime.InferenceSession:
    import onnxruntime  # `make tables` does without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def random_network(size: tuple[int, ...], channels: int) -> Callable[[int], Network]:
    """The network that planning chooses, with random weights."""

    def make(filters: int) -> Network:
        torch.manual_seed(0)
        return LightMUNet(len(size), channels, 3, filters, **DEFAULT), size

    return make


def shipped_network(weights: str, *overlays: str) -> Callable[[int], Network]:
    def make(_: int) -> Network:
        files = [str(CONFIGS / name) for name in ("inference.json", *overlays)]
        model = read_model(files, str(REPOSITORY / "bundle/models" / weights))
        return model.network, model.patch_size

    return make


NETWORKS: dict[str, Callable[[int], Network]] = {
    "default, 64^3": random_network((64, 64, 64), 1),
    "default, 96^3": random_network((96, 96, 96), 1),
    "default, 512^2": random_network((512, 512), 3),
    "hippocampus (`models/model.pt`)": shipped_network("model.pt"),
    "lungs (`models/lung_xray`)": shipped_network("lung_xray/model.pt", "tasks/lung_xray.json"),
    "lungs (`models/lung_xray_paper`)": shipped_network(
        "lung_xray_paper/model.pt", "tasks/lung_xray.json", "tasks/lung_xray_paper.json"
    ),
}


def report(content: dict[str, Any]) -> str:
    """Markdown: the machine and a table."""
    versions = ", ".join(f"{name} {version}" for name, version in content["settings"]["versions"].items())
    return f"{environment_line(content['environment'])}; {versions}\n\n{table(content)}"


def table(content: dict[str, Any]) -> str:
    headers = ["network", "input", "export, s (processor)", "nodes", "MB", "error", "PyTorch's error"]
    headers += ["PyTorch, ms", "onnxruntime, ms", "times PyTorch"]
    rows = sorted(content["rows"], key=lambda row: list(NETWORKS).index(row["network"]))
    return markdown_table(headers, [_cells(row) for row in rows], text_columns=2)


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [f"{row['network']}: {row['failed']}", *["-"] * 9]
    torch_ms, onnx_ms = row["times"]["torch"], row["times"]["onnx"]
    ratio = statistics.median(theirs / ours for theirs, ours in zip(onnx_ms, torch_ms))
    return [
        row["network"],
        row["shape"],
        f"{row['export_s']:.0f} ({row['export_cpu_s']:.0f})",
        f"{row['nodes']:,}",
        f"{row['megabytes']:.0f}",
        *(f"{row[key]:.1e}" if key in row else "-" for key in ("error", "torch_error")),
        number(statistics.median(torch_ms), 3),
        number(statistics.median(onnx_ms), 3),
        number(ratio, 3),
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--filters", type=int, default=32, help="of the default networks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are in it")
    parser.add_argument("--from-json", type=Path, help="print the table of earlier figures")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
