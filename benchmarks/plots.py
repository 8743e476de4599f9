"""Pictures of benchmark results; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from harness import LABELS
from matplotlib.axes import Axes

# A backend keeps its colour from picture to picture. From the Okabe-Ito palette, legible to the colour-blind.
COLOURS = {
    "triton": "#0072B2",
    "cuda": "#332288",
    "numba": "#009E73",
    "chunked": "#56B4E9",
    "naive": "#999999",
    "mamba-ssm": "#D55E00",
    "mamba_ssm": "#E69F00",
    "mambapy": "#CC79A7",
}
OTHERS = ("#117733", "#882255", "#44AA99")
TITLES = {"forward": "forward", "forward_backward": "forward + backward"}
INK, GRID = "#333333", "#e3e3e3"

Curve = tuple[list[int], list[float]]


def plot_sweeps(contents: Sequence[dict[str, Any]], path: Path) -> None:
    """Time over the length of the sequence, log-log: one row of panels a run, one panel a mode."""
    runs = [(content, _curves(content)) for content in contents]
    runs = [(content, curves) for content, curves in runs if curves]
    if not runs:
        raise SystemExit(f"{path}: no sweep among the results: measure with --plot")
    modes = [mode for mode in TITLES if any(mode in curves for _, curves in runs)]
    style = {"font.size": 11, "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": INK}
    with plt.rc_context({**style, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK}):
        figure = plt.figure(figsize=(5.2 * len(modes), 4.4 * len(runs)), layout="constrained")
        parts = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
        for (content, curves), part in zip(runs, parts, strict=True):
            part.suptitle(_where(content), fontsize=11)
            grid = part.subplots(1, len(modes), squeeze=False, sharey=True)[0]
            for mode, ax in zip(modes, grid, strict=True):
                _panel(ax, curves.get(mode, {}))
                ax.set_title(TITLES[mode], fontsize=11, fontweight="bold")
            grid[0].set_ylabel("milliseconds")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _where(content: dict[str, Any]) -> str:
    sweep = next(row for row in content["rows"] if row["kind"] == "sweep")
    batch, _, channels, state = sweep["shape"].split("x")
    environment = content["environment"]
    device = environment["device"] if environment["cuda"] else f"CPU, {environment['threads']} threads"
    graphs = ", as CUDA graphs" if content["settings"].get("cuda_graph") else ""
    return f"{device}, {sweep['dtype']}, batch {batch}, {channels} channels, state {state}{graphs}"


def _curves(content: dict[str, Any]) -> dict[str, dict[str, Curve]]:
    """Mode -> backend -> lengths and times."""
    curves: dict[str, dict[str, Curve]] = {}
    for row in content["rows"]:
        for mode in TITLES if row["kind"] == "sweep" else ():
            if f"{mode}_ms" in row:
                lengths, times = curves.setdefault(mode, {}).setdefault(row["backend"], ([], []))
                lengths.append(int(row["shape"].split("x")[1]))
                times.append(row[f"{mode}_ms"])
    return curves


def _panel(ax: Axes, curves: dict[str, Curve]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    spare = iter(OTHERS * 4)
    colours = {name: COLOURS.get(name) or next(spare) for name in curves}
    for name, (lengths, times) in curves.items():
        ax.plot(lengths, times, color=colours[name], linewidth=2, marker="o", markersize=3.5)
    lengths = sorted({length for curve in curves.values() for length in curve[0]})
    if lengths:
        ax.set_xlim(lengths[0] / 1.2, lengths[-1] * 1.2)
        ticks = lengths[:: 1 + len(lengths) // 7]
        ax.set_xticks(ticks, [_short(length) for length in ticks])
    ax.minorticks_off()
    ax.set_xlabel("length of the sequence")
    ax.grid(color=GRID, linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    _label_ends(ax, curves, colours)


def _label_ends(ax: Axes, curves: dict[str, Curve], colours: dict[str, str]) -> None:
    """Each name beside the end of its line; where names would overlap, the upper ones move up."""
    figure = ax.figure
    figure.canvas.draw()
    apart = 14 * figure.dpi / 72  # a line of text, in pixels
    taken: list[tuple[float, float]] = []
    for name, (lengths, times) in sorted(curves.items(), key=lambda item: item[1][1][-1]):
        x, y = ax.transData.transform((lengths[-1], times[-1]))
        lowest = max((b + apart for a, b in taken if abs(a - x) < 90), default=y)
        taken.append((x, max(y, lowest)))
        offset = ((6 * figure.dpi / 72), max(y, lowest) - y)
        points = tuple(pixels * 72 / figure.dpi for pixels in offset)
        style = {"color": colours[name], "fontweight": "bold", "fontsize": 10, "va": "center"}
        label = LABELS.get(name, name)
        ax.annotate(label, (lengths[-1], times[-1]), points, textcoords="offset points", annotation_clip=False, **style)


def _short(length: int) -> str:
    """1024 -> 1k, 2097152 -> 2M."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if length >= unit:
            return f"{length / unit:g}{name}"
    return str(length)
