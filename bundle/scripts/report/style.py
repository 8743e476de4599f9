"""Colours and text shared by the pictures and the charts.

Okabe and Ito's colours stay distinguishable with every common colour blindness. One meaning each, everywhere: what both
have is blue, what only the reference has is yellow, what only the prediction has is vermilion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from ..common.atomic_writing import replacing

__all__ = ["BOTH", "DARK", "INK", "LIGHT", "PAPER", "PREDICTION", "REFERENCE", "WRONG_CLASS", "Theme", "class_colour"]
__all__ += ["plain", "save_chart", "save_figure", "shortened"]

BOTH, REFERENCE, PREDICTION, WRONG_CLASS = "#56b4e9", "#f0e442", "#e8590c", "#cc79a7"
PAPER, INK = "#14171c", "#e8eaed"  # background and text of the panels, dark like a viewing room
# Classes take other colours than errors, as long as there are any.
_CLASSES = ("#2ec4a0", "#a78bfa", "#ffa94d", "#a9d65c", "#c98bdb", "#b08968", "#8fa8c8", "#5c7cfa")
CHART_DPI = 180
LONGEST_NAME = 18  # of a class in a chart


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; its background is transparent, so it takes the page's."""

    suffix: str
    text: str
    grid: str
    first: str
    second: str
    third: str

    def apply(self, figure: Figure) -> None:
        """Colour the axes of a finished figure."""
        for ax in figure.axes:
            ax.tick_params(colors=self.text, which="both", labelsize=9, length=0)
            ax.grid(True, axis="y", color=self.grid, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.xaxis.label.set_color(self.text)
            ax.title.set(x=0, ha="left", fontsize=11, color=self.text)
            for side, spine in ax.spines.items():
                spine.set_visible(side == "bottom")
                spine.set_color(self.grid)
            legend = ax.get_legend()
            for text in legend.get_texts() if legend else ():
                text.set_color(self.text)


LIGHT = Theme("", "#374151", "#dfe3e8", "#0b6bb0", "#c2500a", "#6b7280")
DARK = Theme("_dark", "#c9d1d9", "#343b45", "#6cb6ee", "#f0915a", "#9aa4b0")


def class_colour(index: int) -> str | tuple[float, ...]:
    """Colour of the class with this index, from 0; repeats only after 28."""
    return _CLASSES[index] if index < len(_CLASSES) else colormaps["tab20"]((index - len(_CLASSES)) % 20)


def plain(text: str) -> str:
    """Text of a user's for matplotlib, which would read dollars as formulas and hide names with a leading _."""
    text = text.replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + text if text.startswith("_") else text


def shortened(name: str) -> str:
    """The beginning and the end of a long name: names of one data set often differ in the end alone."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[half + 1 - LONGEST_NAME :]}"


def save_figure(figure: Figure, path: Path, dpi: int, transparent: bool = False) -> None:
    """Write a PNG, the folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, transparent=transparent, facecolor="none" if transparent else None)


def save_chart(draw: Callable[[Figure, Theme], None], path: Path, size: tuple[float, float] = (3.7, 2.6)) -> list[Path]:
    """Draw a chart for light and for dark pages: NAME.png and NAME_dark.png.

    Args:
        draw: draws into an empty figure in the colours of a theme.
        size: inches.
    """
    paths = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, theme)
        theme.apply(figure)
        paths.append(path.with_name(f"{path.stem}{theme.suffix}.png"))
        save_figure(figure, paths[-1], CHART_DPI, transparent=True)
    return paths
