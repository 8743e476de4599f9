"""Charts over all cases: distributions, sizes, and what postprocessing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .style import Theme, plain, shortened

__all__ = ["draw_agreement", "draw_distribution", "draw_gains"]

DOTS = 300  # from this many cases on, single dots only blur the box
LETTERS_ACROSS = 42  # of all names as long as the longest: more are written at a slant
NAMES_AT_A_SLANT = 12  # more are written upright
NAMES_UPRIGHT = 25  # more do not fit: every other one is left out, or more


def draw_distribution(
    figure: Figure, theme: Theme, values: Mapping[str, Mapping[str, Sequence[float]]], title: str, unit: str
) -> None:
    """Box plots of one metric: a group a class, a box a result ("prediction", "postprocessed").

    Boxes reach from the first to the third quartile, the line is the median, whiskers reach 1.5 times the box.

    Args:
        values: result -> class -> the defined values.
        unit: "" for ratios, whose axis ends at 1.
    """
    ax = figure.subplots()
    classes = list(next(iter(values.values())))
    width = 0.55 / len(values)
    for i, (result, by_class) in enumerate(values.items()):
        colour = (theme.first, theme.second)[i]
        places = np.arange(len(classes)) + (i - (len(values) - 1) / 2) * (width + 0.06)
        _boxes(ax, [by_class[name] for name in classes], places, width, colour, theme)
        ax.plot([], [], "s", color=colour, label=result)
    ax.set_xlim(-0.6, len(classes) - 0.4)
    _name_classes(ax, [shortened(name) for name in classes])
    ax.set_title(f"{title}, {unit}" if unit else title)
    if not unit:
        ax.set_ylim(top=1.02)  # room for a dot at 1, not for a tick above it
        ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick < 1.01])
    if len(values) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=theme.text)


def _name_classes(ax, names: Sequence[str]) -> None:
    """Names below the boxes, across, at a slant or upright, so that none covers another."""
    across = len(names) * max(map(len, names), default=0) <= LETTERS_ACROSS
    slant = {} if across else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    if len(names) > NAMES_AT_A_SLANT:
        slant = {"rotation": 90}
    step = math.ceil(len(names) / NAMES_UPRIGHT)
    ax.set_xticks(range(0, len(names), step), [plain(name) for name in names[::step]], **slant)


def _boxes(ax, data: list[Sequence[float]], places: np.ndarray, width: float, colour: str, theme: Theme) -> None:
    ax.boxplot(
        data,
        positions=places,
        widths=width,
        manage_ticks=False,
        showfliers=any(len(values) > DOTS for values in data),
        patch_artist=True,
        boxprops={"facecolor": colour + "33", "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
    )
    random = np.random.default_rng(0)
    for place, values in zip(places, data):
        if len(values) <= DOTS:
            jitter = random.uniform(-0.25, 0.25, len(values)) * width
            ax.scatter(place + jitter, values, s=9, color=theme.text, alpha=0.55, linewidths=0, zorder=3)


def draw_agreement(
    figure: Figure, theme: Theme, sizes: Mapping[str, Sequence[tuple[float, float]]], unit: str, kind: str
) -> None:
    """The predicted size of each case against the reference's; the line is equality.

    Args:
        sizes: class -> (reference, prediction) of each case.
        kind: "volume" or "area".
    """
    ax = figure.subplots()
    markers = "osD^vP*X"
    colours = (theme.first, theme.second, theme.third)
    for i, (name, pairs) in enumerate(sizes.items()):
        expected, predicted = np.array(pairs, dtype=float).reshape(-1, 2).T
        style = {"s": 16, "alpha": 0.75, "linewidths": 0, "color": colours[i % 3], "marker": markers[i % 8]}
        ax.scatter(expected, predicted, label=plain(shortened(name)), **style)
    highest = max((max(pair) for pairs in sizes.values() for pair in pairs), default=0.0) or 1.0
    ax.plot([0, highest], [0, highest], color=theme.third, linewidth=1, zorder=0)
    ax.set_xlabel(f"reference, {unit}", fontsize=9)
    ax.set_title(f"Predicted {kind}, {unit}")
    if 1 < len(sizes) <= 8:
        ax.legend(frameon=False, fontsize=8.5)


def draw_gains(figure: Figure, theme: Theme, gains: Sequence[float]) -> None:
    """The gain in mean Dice of each case through postprocessing, from the largest loss to the largest gain."""
    ax = figure.subplots()
    ordered = np.sort([gain for gain in gains if not math.isnan(gain)])
    colours = np.where(ordered < 0, theme.second, theme.first)
    ax.bar(np.arange(1, len(ordered) + 1), ordered, width=0.8 if len(ordered) < 100 else 1.0, color=colours)
    ax.axhline(0, color=theme.third, linewidth=1)
    ax.set_xlabel("cases, sorted", fontsize=9)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if not len(ordered) or not np.abs(ordered).max():
        ax.set_ylim(-0.01, 0.01)
    ax.set_title("Gain in mean Dice by postprocessing")
