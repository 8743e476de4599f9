"""Draws the held-out Dice of every case of some records, the worst ones by name.

    python benchmarks/accuracy_figure.py --output benchmarks/results/accuracy_cases.png \
        --records "16 filters=hippocampus_NAME_fold0_seed0_5000it" "lungs=lung_xray_NAME_fold0_seed0_5000it"

A name without its title is the file's own; names are those of benchmarks/results/accuracy, without ".json".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from accuracy import RESULTS
from matplotlib.axes import Axes
from plots import GRID, INK

NAMED = 3  # of the worst cases of a class
BLUE, VERMILION = "#0072B2", "#D55E00"


def draw(records: Sequence[tuple[str, dict[str, Any]]], path: Path) -> None:
    """One panel a record: (its title, the record)."""
    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID}
    with plt.rc_context({**style, "xtick.color": INK, "ytick.color": INK}):
        figure, axes = plt.subplots(
            1, len(records), figsize=(3.4 * len(records), 4.2), layout="constrained", sharey=True, squeeze=False
        )
        for ax, (title, record) in zip(axes[0], records, strict=True):
            _panel(ax, record["scores"]["tta"])
            ax.set_title(title, fontsize=10, loc="left")
        axes[0, 0].set_ylabel("Dice of a held-out case")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _panel(ax: Axes, scores: dict[str, dict[str, dict[str, float | None]]]) -> None:
    """A column of points a class, spread sideways so that they do not hide each other, and their mean."""
    random = np.random.RandomState(0)
    classes = list(next(iter(scores.values())))
    for column, name in enumerate(classes):
        cases = sorted((row[name]["dice"], case) for case, row in scores.items() if row[name]["dice"] is not None)
        dice = [value for value, _ in cases]
        mean = statistics.mean(dice)
        ax.scatter(column + random.uniform(-0.13, 0.13, len(dice)), dice, s=14, color=BLUE, alpha=0.55, linewidths=0)
        ax.hlines(mean, column - 0.25, column + 0.25, color=VERMILION, linewidth=2)
        ax.annotate(f"{mean:.3f}", (column + 0.27, mean), color=VERMILION, va="center", fontsize=9)
        _name_worst(ax, column, cases[:NAMED])
    ax.set_xticks(range(len(classes)), classes)
    ax.set_xlim(-0.5, len(classes) - 0.2)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(length=0)


def _name_worst(ax: Axes, column: int, cases: Sequence[tuple[float, str]]) -> None:
    """Names beside their points, moved up where they would overlap."""
    lowest = -1.0
    for dice, case in cases:
        lowest = max(dice, lowest + 0.012)
        ax.annotate(case.split("_", 1)[1], (column + 0.17, lowest), fontsize=7.5, va="center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", nargs="+", required=True, metavar="[TITLE=]NAME", help="which, left to right")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    args = parser.parse_args()
    chosen = []
    for item in args.records:
        title, _, name = item.rpartition("=") if not (args.results / f"{item}.json").exists() else (item, "", item)
        path = args.results / f"{name}.json"
        if not path.exists():
            parser.error(f"--records: there is no {path}")
        chosen.append((title or name, json.loads(path.read_text(encoding="utf-8"))))
    draw(chosen, args.output)
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
