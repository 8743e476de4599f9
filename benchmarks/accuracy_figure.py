"""Draws the held-out Dice of every case of some records, the worst ones by name.

    python benchmarks/accuracy_figure.py --output accuracy_cases.png \
        --records "32 filters=hippocampus/f32-exact-decay-depth-5000it:2" "lungs=lung_xray/f16-1e-3-5000it"

Names are those of the files in benchmarks/results/accuracy, without ".json"; with a fold behind them its cases alone.
Without a title the name is the title.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from accuracy_records import RESULTS, Record, load_row
from matplotlib.axes import Axes
from plots import GRID, INK

NAMED = 3  # of the worst cases of a class
BLUE, VERMILION = "#0072B2", "#D55E00"


def chosen(results: Path, item: str) -> tuple[str, list[Record]]:
    """[TITLE=]NAME[:FOLD] -> the title and the runs.

    Raises:
        ValueError: there is no such file or fold.
    """
    title, _, name = item.rpartition("=")
    row, _, fold = name.partition(":")
    path = results / f"{row}.json"
    runs = [run for run in load_row(path) if fold in ("", run["fold"])] if path.exists() else []
    if not runs:
        raise ValueError(f"there is no {path}{f', fold {fold}' if fold else ''}")
    return title or name, runs


def draw(panels: Sequence[tuple[str, Sequence[Record]]], path: Path) -> None:
    """One panel a row: (its title, its runs)."""
    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID}
    with plt.rc_context({**style, "xtick.color": INK, "ytick.color": INK}):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels), 4.2), layout="constrained", sharey=True, squeeze=False
        )
        for ax, (title, runs) in zip(axes[0], panels, strict=True):
            _panel(ax, [item for run in runs for item in run["scores"]["tta"].items()])
            ax.set_title(title, fontsize=10, loc="left")
        axes[0, 0].set_ylabel("Dice of a held-out case")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _panel(ax: Axes, scores: Sequence[tuple[str, dict[str, dict[str, float | None]]]]) -> None:
    """A column of points a class, spread sideways so that they do not hide each other, and their mean.

    Args:
        ax: where.
        scores: (case, class -> its metrics).
    """
    random = np.random.RandomState(0)
    classes = list(scores[0][1])
    for column, name in enumerate(classes):
        cases = sorted((row[name]["dice"], case) for case, row in scores if row[name]["dice"] is not None)
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
    parser.add_argument("--records", nargs="+", required=True, metavar="[TITLE=]NAME[:FOLD]", help="left to right")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--output", type=Path, required=True, help="the picture")
    args = parser.parse_args()
    try:
        panels = [chosen(args.results, item) for item in args.records]
    except ValueError as error:
        parser.error(f"--records: {error}")
    draw(panels, args.output)
    print(f"-> {args.output}")


if __name__ == "__main__":
    main()
