"""Training curves from a run's log.jsonl, which holds one JSON object an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..common.run_folder import RunFolder
from .style import Theme, plain, shortened

__all__ = ["curve_charts", "read_log"]

NAMES_INSIDE, NAMES_BELOW = 6, 12  # the most lines whose names fit in a chart, and below it


def read_log(run_dir: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The epochs of a run in order, and what is wrong with its log, if anything.

    An epoch that stands there twice counts as it was written last. A line that is no JSON is left out.
    """
    path = RunFolder(run_dir).epochs
    log = f"{run_dir.name}/{path.name}"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return [], f"no training curves: {log} cannot be read ({error.strerror})."
    epochs: dict[float, dict[str, Any]] = {}
    broken = 0
    for line in filter(str.strip, lines):
        entry = _parse(line)
        if entry is None:
            broken += 1
        else:
            epochs[entry["epoch"]] = entry
    problem = f"{broken} line(s) of {log} are not an epoch's and were left out." if broken else None
    if not epochs:
        problem = f"no training curves: {log} holds no epoch."
    return [epochs[epoch] for epoch in sorted(epochs)], problem


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and _is_number(entry.get("epoch")) and _has_scores(entry) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _has_scores(entry: Mapping[str, Any]) -> bool:
    return entry.get("dice") is None or isinstance(entry["dice"], dict)


def curve_charts(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[Figure, Theme], None]]:
    """Title -> function that draws the chart, for everything the log holds."""
    names = list(dict.fromkeys(name for entry in epochs for name in entry.get("dice") or {}))
    charts = {
        "Loss": {"loss": _series(epochs, "loss")},
        "Validation Dice": {name: _series(epochs, "dice", name) for name in names},
        "Pseudo-Dice": {
            "each epoch": _series(epochs, "pseudo_dice"),
            "moving average": _series(epochs, "ema_pseudo_dice"),
        },
        "Learning rate": {"learning rate": _series(epochs, "lr")},
        "Throughput, samples a second": {"throughput": _series(epochs, "samples_per_second")},
    }
    drawn = {title: {n: s for n, s in lines.items() if s[0]} for title, lines in charts.items()}
    return {title: _drawing(title, lines) for title, lines in drawn.items() if lines}


def _series(epochs: Sequence[Mapping[str, Any]], key: str, name: str | None = None) -> tuple[list, list]:
    """Epochs and values, where the value is a number."""
    pairs = [(entry["epoch"], (entry.get(key) or {}).get(name) if name else entry.get(key)) for entry in epochs]
    pairs = [(x, y) for x, y in pairs if isinstance(y, (int, float))]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _drawing(title: str, lines: Mapping[str, tuple[list, list]]) -> Callable[[Figure, Theme], None]:
    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        colours, styles = (theme.first, theme.second, theme.third), ("-", "--", ":", "-.")
        for i, (name, (x, y)) in enumerate(lines.items()):
            marker = "o" if len(x) < 3 else ""
            style = {"color": colours[i % 3], "linestyle": styles[i // 3 % 4], "linewidth": 1.6, "marker": marker}
            ax.plot(x, y, label=plain(shortened(name)), **style)
        if title == "Learning rate" and all(value > 0 for _, y in lines.values() for value in y):
            ax.set_yscale("log")
        ax.set_title(title)
        ax.set_xlabel("epoch", fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if 1 < len(lines) <= NAMES_INSIDE:
            ax.legend(frameon=False, fontsize=8.5)
        elif NAMES_INSIDE < len(lines) <= NAMES_BELOW:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=theme.text)

    return draw
