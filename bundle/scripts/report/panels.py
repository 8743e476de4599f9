"""The pictures of one case: a panel with its planes through the largest error, and a montage of slices."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from skimage.measure import find_contours

from ..images.task import Task
from .loading import load_channels, load_label_map
from .pairing import Case
from .planes import PLANES, Canvas, Zoom, foreground_box, largest_error, montage_slices, planes_of, show, upright
from .style import BOTH, INK, PAPER, PREDICTION, REFERENCE, WRONG_CLASS, class_colour, plain, save_figure, shortened
from .windows import Window, display_window

__all__ = ["PanelJob", "draw_case"]

TILE = 2.5  # inches
DPI = 110
HALO = [withStroke(linewidth=2.3, foreground="#000000b0")]  # keeps letters and lines visible on bright tissue
MONTAGE_COLUMNS, MONTAGE_SLICES = 6, 18
CLASSES_IN_LEGEND = 12
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED = 1, 2, 3, 4
ERRORS = {
    TRUE_POSITIVE: (BOTH, "true positive"),
    FALSE_POSITIVE: (PREDICTION, "false positive"),
    FALSE_NEGATIVE: (REFERENCE, "false negative"),
    CONFUSED: (WRONG_CLASS, "wrong class"),
}


@dataclass(frozen=True)
class PanelJob:
    """What to draw and where.

    Args:
        labels: class -> value, of all classes of the report.
        titles: "prediction" and "postprocessed" -> their score in words.
        panel, montage: the PNGs to write.
    """

    case: Case
    task: Task
    labels: Mapping[str, int]
    titles: Mapping[str, str]
    panel: Path
    montage: Path


@dataclass(frozen=True)
class View:
    """The upright arrays of a case (right, anterior, superior), label maps with 0 where the task ignores voxels."""

    canvas: Canvas
    image: np.ndarray | None
    prediction: np.ndarray
    label: np.ndarray | None
    postprocessed: np.ndarray | None
    errors: np.ndarray | None
    window: Window
    zoom: Zoom | None
    point: tuple[int, int, int]

    @property
    def final(self) -> np.ndarray:
        return self.prediction if self.postprocessed is None else self.postprocessed

    @property
    def foreground(self) -> np.ndarray:
        return self.final > 0 if self.label is None else (self.final > 0) | (self.label > 0)


def draw_case(job: PanelJob) -> bool:
    """Draw a case's panel and, for volumes, its montage; returns whether there is a montage."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script the font lacks
        view = _load(job)
        _draw_panel(view, job)
        if min(view.canvas.shape) == 1:
            return False
        _draw_montage(view, job)
        return True


def _load(job: PanelJob) -> View:
    case, task = job.case, job.task
    prediction, canvas = upright(load_label_map(case.prediction, task))
    label = upright(load_label_map(case.label, task))[0] if case.label else None
    cleaned = upright(load_label_map(case.postprocessed, task))[0] if case.postprocessed else None
    if task.ignore_label is not None and label is not None:
        ignored = label == task.ignore_label
        prediction, label, cleaned = (
            None if m is None else np.where(ignored, 0, m) for m in (prediction, label, cleaned)
        )
    image = upright(load_channels(case.images))[0] if case.images else None
    if image is not None and (canvas.letters or image.shape[-1] != 3):
        image = image[..., 0]  # the first channel, but a colour picture in colour
    final = prediction if cleaned is None else cleaned
    errors = None if label is None else _error_map(final, label)
    masks = [m > 0 for m in (prediction, label) if m is not None]
    foreground = np.logical_or.reduce(masks)
    window = Window(0.0, 1.0, "") if image is None else display_window(image, masks[-1])
    wrong = np.zeros(canvas.shape, bool) if errors is None else errors > TRUE_POSITIVE
    point = largest_error(wrong, foreground, canvas)
    zoom = foreground_box(masks, canvas)
    return View(canvas, image, prediction, label, cleaned, errors, window, zoom, point)


def _error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    errors = np.zeros(label.shape, np.uint8)
    errors[(prediction > 0) & (label > 0)] = CONFUSED
    errors[(prediction == label) & (label > 0)] = TRUE_POSITIVE
    errors[(prediction > 0) & (label == 0)] = FALSE_POSITIVE
    errors[(prediction == 0) & (label > 0)] = FALSE_NEGATIVE
    return errors


Tile = tuple[str, Callable[[Axes, int], None], bool]  # title, drawing of a plane, zoomed


def _tiles(view: View, job: PanelJob) -> list[Tile]:
    """What stands side by side, from left to right."""
    colours = {value: class_colour(i) for i, value in enumerate(job.labels.values())}

    def classes(label_map: np.ndarray) -> Callable[[Axes, int], None]:
        return lambda ax, axis: _fill(ax, view, label_map, axis, colours, 0.55)

    tiles: list[Tile] = []
    if view.image is not None:
        tiles.append(("Image", lambda ax, axis: _mark_zoom(ax, view, axis), False))
    if view.label is not None:
        tiles.append(("Reference", classes(view.label), True))
    tiles.append((f"Prediction\n{job.titles.get('prediction', '')}".strip(), classes(view.prediction), True))
    if view.postprocessed is not None:
        title = f"Postprocessed\n{job.titles.get('postprocessed', '')}".strip()
        tiles.append((title, classes(view.postprocessed), True))
    of_what = "" if view.postprocessed is None else "\nafter postprocessing"
    if view.errors is not None:
        errors = {kind: colour for kind, (colour, _) in ERRORS.items()}
        tiles.append((f"Errors{of_what}", lambda ax, axis: _fill(ax, view, view.errors, axis, errors, 0.7), True))
    tiles.append((f"Contours{of_what}", lambda ax, axis: _outline_both(ax, view, axis), True))
    return tiles


def _draw_panel(view: View, job: PanelJob) -> None:
    tiles, axes = _tiles(view, job), planes_of(view.canvas)
    columns = len(tiles) if len(axes) > 1 else min(len(tiles), 3)
    rows = len(axes) if len(axes) > 1 else -(-len(tiles) // 3)
    heights = [_tile_height(view, axes[row] if len(axes) > 1 else axes[0]) for row in range(rows)]
    single = 1.0 if len(axes) > 1 else 1.35  # a picture has room for larger tiles
    size = (TILE * single * columns, TILE * single * sum(heights) + 0.42 * (rows if len(axes) == 1 else 1) + 0.75)
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    _hide_axes(grid)
    for row, column, tile, axis in _places(tiles, axes, columns):
        title, draw, zoomed = tile
        ax = grid[row, column]
        _draw_plane(ax, view, axis, view.point[axis], zoomed)
        draw(ax, axis)
        if row == 0 or len(axes) == 1:
            ax.set_title(title, color=INK, fontsize=10)
        if column == 0 and len(axes) > 1:
            text = f"{PLANES[axis]}, slice {view.point[axis] + 1} of {view.canvas.shape[axis]}"
            ax.set_ylabel(text, color=INK, fontsize=9)
    figure.suptitle(plain(_heading(view, job)), color=INK, fontsize=12)
    _legend(figure, view, job)
    save_figure(figure, job.panel, DPI)


def _hide_axes(grid: np.ndarray) -> None:
    for ax in grid.flat:
        ax.set(xticks=[], yticks=[], facecolor="none")
        ax.spines[:].set_visible(False)


def _places(tiles: list[Tile], axes: list[int], columns: int) -> list[tuple[int, int, Tile, int]]:
    """Row, column, tile and plane: a row a plane; a lone plane's tiles go on in the next row."""
    if len(axes) == 1:
        return [(i // columns, i % columns, tile, axes[0]) for i, tile in enumerate(tiles)]
    return [(row, column, tile, axis) for row, axis in enumerate(axes) for column, tile in enumerate(tiles)]


def _draw_montage(view: View, job: PanelJob) -> None:
    axis, slices = montage_slices(view.foreground, view.canvas, MONTAGE_SLICES)
    columns = min(MONTAGE_COLUMNS, len(slices))
    rows = -(-len(slices) // columns)
    height = _tile_height(view, axis)
    figure = Figure(
        figsize=(TILE * columns, TILE * height * rows + 1.1 + 0.1 * rows), layout="constrained", facecolor=PAPER
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    _hide_axes(grid)
    for ax, index in zip(grid.flat, slices):
        _draw_plane(ax, view, axis, index, zoomed=True, letters=False)
        _outline_both(ax, view, axis, index)
        ax.set_xlabel(f"slice {index + 1}", color=INK, fontsize=9)
    figure.suptitle(plain(f"{job.case.name}: {PLANES[axis]} slices"), color=INK, fontsize=12)
    figure.legend(handles=_contour_handles(view), **_legend_style(figure))
    save_figure(figure, job.montage, DPI)


def _tile_height(view: View, axis: int) -> float:
    """Height over width of a plane's tile, within reason."""
    width, height = view.canvas.size(axis)
    if view.zoom is not None:
        left, right, top, bottom = view.zoom.limits(view.canvas, axis)
        width, height = right - left, bottom - top
    return float(np.clip(height / width, 0.45, 1.5))


def _draw_plane(ax: Axes, view: View, axis: int, index: int, zoomed: bool, letters: bool = True) -> None:
    width, height = view.canvas.size(axis)
    if view.image is None:
        grey = np.zeros(show(view.prediction, axis, index).shape)
    else:
        grey = view.window.grey(show(view.image, axis, index))
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0), aspect="equal")
    limits = view.zoom.limits(view.canvas, axis) if zoomed and view.zoom else (0, width, 0, height)
    ax.set_xlim(limits[:2])
    ax.set_ylim(limits[3], limits[2])
    if letters and view.canvas.letters:
        places = ((0.02, 0.5, "left"), (0.98, 0.5, "right"), (0.5, 0.98, "center"), (0.5, 0.02, "center"))
        for (x, y, align), letter in zip(places, view.canvas.ends(axis)):
            vertical = {0.98: "top", 0.02: "bottom"}.get(y, "center")
            style = {"color": INK, "fontsize": 9, "weight": "bold", "path_effects": HALO}
            ax.text(x, y, letter, transform=ax.transAxes, va=vertical, ha=align, **style)


def _mark_zoom(ax: Axes, view: View, axis: int) -> None:
    """A frame around what the other tiles show."""
    if view.zoom is not None:
        left, right, top, bottom = view.zoom.limits(view.canvas, axis)
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=INK, linewidth=0.9)
        ax.add_patch(frame)


def _fill(
    ax: Axes, view: View, label_map: np.ndarray, axis: int, colours: Mapping[int, str | tuple], opacity: float
) -> None:
    plane = show(label_map, axis, view.point[axis])
    overlay = np.zeros((*plane.shape, 4), np.float32)
    for value, colour in colours.items():
        overlay[plane == value] = (*to_rgb(colour), opacity)
    width, height = view.canvas.size(axis)
    ax.imshow(overlay, extent=(0, width, height, 0), aspect="equal", interpolation="nearest")


def _outline_both(ax: Axes, view: View, axis: int, index: int | None = None) -> None:
    index = view.point[axis] if index is None else index
    if view.label is not None:
        _outline(ax, view.canvas, show(view.label, axis, index), axis, REFERENCE, "-")
    _outline(ax, view.canvas, show(view.final, axis, index), axis, PREDICTION, "-" if view.label is None else "--")


def _outline(ax: Axes, canvas: Canvas, plane: np.ndarray, axis: int, colour: str, line: str) -> None:
    wide, high = canvas.pixel(axis)
    for value in np.unique(plane[plane > 0]):
        for contour in find_contours(np.pad(plane == value, 1).astype(float), 0.5):
            rows, columns = contour.T - 0.5  # the padding's voxel off, half a voxel to its corner
            ax.plot(columns * wide, rows * high, line, color=colour, linewidth=1.4, path_effects=HALO)


def _heading(view: View, job: PanelJob) -> str:
    where = "" if view.errors is None or min(view.canvas.shape) == 1 else ", planes through the largest error"
    return job.case.name + where + (f"  ({view.window.text})" if view.window.text else "")


def _legend(figure: Figure, view: View, job: PanelJob) -> None:
    shown = list(job.labels)[:CLASSES_IN_LEGEND]
    handles = [Patch(color=class_colour(i), label=plain(shortened(name))) for i, name in enumerate(shown)]
    if len(job.labels) > len(shown):
        handles.append(Patch(alpha=0, label=f"and {len(job.labels) - len(shown)} more"))
    if view.errors is not None:
        kinds = [kind for kind in ERRORS if kind != CONFUSED or len(job.labels) > 1]
        handles += [Patch(color=ERRORS[kind][0], label=ERRORS[kind][1]) for kind in kinds]
    figure.legend(handles=handles + _contour_handles(view), **_legend_style(figure))


def _contour_handles(view: View) -> list[Line2D]:
    name = "prediction" if view.postprocessed is None else "postprocessed"
    if view.label is None:
        return [Line2D([], [], color=PREDICTION, label=f"{name} contour")]
    reference = Line2D([], [], color=REFERENCE, label="reference contour")
    return [reference, Line2D([], [], color=PREDICTION, linestyle="--", label=f"{name} contour")]


def _legend_style(figure: Figure) -> dict:
    columns = max(2, int(figure.get_figwidth() / 1.55))
    return {"loc": "outside lower center", "ncols": columns, "frameon": False, "labelcolor": INK, "fontsize": 8.5}
