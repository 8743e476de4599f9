"""Time and peak memory of a train step of LightM-UNet that computes its layers' inside again in the backward pass, and
of one that keeps it (`recompute_activations`), as a Markdown table.

    python benchmarks/recompute.py --json FILE.json
    python benchmarks/recompute.py --shapes 2x3x512x512 --rounds 20
    python benchmarks/recompute.py --device cpu --shapes 1x1x8x8x8   # a trial of the script: a CPU always keeps it
    python benchmarks/recompute.py --from-json FILE.json

Steps and memory are those of networks.py, which measures them, in bfloat16 autocast; on a GPU each step is replayed as
one CUDA graph.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from harness import Budget, Results, Row, load_results, markdown_table, number, report
from network_candidates import Shape, parse_shape
from networks import measure
from networks import parse_arguments as parse_network_arguments
from options import argument_parser

BENCHMARK = "recompute"
# What differs from the paper's network; the first is the training of the shipped hippocampus weights.
RECIPES = {"9x1x40x56x40": "scan_order=axes,stem=full,", "2x3x512x512": "", "2x1x80x128x128": ""}
HEADERS = ["input", "recomputed ms", "kept ms", "times as fast", "recomputed peak GiB", "kept peak GiB"]


def measured(shape: Shape, device: torch.device, rounds: int, budget: Budget) -> list[Row]:
    """The rows of networks.py: the step that recomputes, the one that keeps."""
    recipe = RECIPES.get(str(shape), "")
    networks = [f"lightm_unet:{recipe}recompute_activations={value}" for value in ("true", "false")]
    options = ["--shapes", str(shape), "--device", str(device), "--modes", "train", "--amp", "--no-memory"]
    options += ["--cuda-graph"] if device.type == "cuda" else []
    options += ["--rounds", str(rounds), f"--budget-s={budget.left():.0f}", "--networks", *networks]
    return measure(parse_network_arguments(options))["rows"]


def table(content: dict[str, Any]) -> str:
    """One line an input: the step that recomputes beside the one that keeps."""
    rows = content["rows"]
    shapes = dict.fromkeys(row["shape"] for row in rows)
    return markdown_table(HEADERS, [_line(shape, [row for row in rows if row["shape"] == shape]) for shape in shapes])


def _line(shape: str, rows: Sequence[Row]) -> list[str]:
    times = [row.get("train_ms") for row in rows]
    peaks = [row["peak_bytes"]["train"] / 2**30 if "peak_bytes" in row else None for row in rows]
    ratio = times[0] / times[1] if all(times) else None
    return [shape, *(number(value, 3) for value in (*times, ratio, *peaks))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=list(map(parse_shape, RECIPES)))
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budget-s", type=float, default=90, help="stop after so many seconds (default 90)")
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if args.from_json:
        print(report(load_results(args.from_json, BENCHMARK), table))
        return
    budget, results = Budget(args.budget_s), Results(args.json, BENCHMARK, args.device, {"rounds": args.rounds})
    for shape in args.shapes:
        results.content["rows"] += measured(shape, args.device, args.rounds, budget)
        results.save()
    print(report(results.content, table))


if __name__ == "__main__":
    main()
