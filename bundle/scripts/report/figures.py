"""Draws every figure of a report into its folder."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..common.workers import map_cases
from ..images.task import Task
from .charts import draw_agreement, draw_distribution, draw_gains
from .curves import curve_charts
from .page import Chart, metric_name
from .pairing import Case
from .panels import PanelJob, draw_case
from .style import Theme, save_chart

__all__ = ["distribution_charts", "draw_panels", "postprocessing_charts", "training_charts"]


def distribution_charts(summary: Mapping[str, Any], folder: Path) -> list[Chart]:
    """A box plot a metric, and the predicted sizes against the reference's."""
    charts = []
    names = [*summary["classes"], *summary["regions"]]
    for metric, unit in summary["units"].items():
        if metric.startswith("reference_"):
            continue  # in the chart of agreement
        values = {
            kind: {name: _defined(row[kind][name][metric] for row in summary["per_case"]) for name in names}
            for kind in summary["results"]
        }
        title = metric_name(metric, unit)
        if f"reference_{metric}" in summary["units"]:
            charts.append(_agreement(summary, metric, unit, names, folder))
        else:
            draw = partial(draw_distribution, values=values, title=title, unit=unit)
            charts.append(_chart(draw, folder / f"box_{metric}.png", f"Box plots of {title} for each class"))
    return charts


def _agreement(summary: Mapping[str, Any], metric: str, unit: str, names: Sequence[str], folder: Path) -> Chart:
    final = list(summary["results"])[-1]
    scores = [row[final] for row in summary["per_case"]]
    sizes = {name: [(own[name][f"reference_{metric}"], own[name][metric]) for own in scores] for name in names}
    kind = metric.split("_")[0]
    draw = partial(draw_agreement, sizes=sizes, unit=unit, kind=kind)
    return _chart(draw, folder / f"agreement_{metric}.png", f"Predicted {kind} of each case against the reference's")


def postprocessing_charts(summary: Mapping[str, Any], folder: Path) -> list[Chart]:
    """The gain of each case."""
    if not summary["postprocessing"]:
        return []
    gains = [row["gain"] for row in summary["per_case"]]
    text = "Gain in mean Dice of each case through postprocessing, sorted"
    return [_chart(partial(draw_gains, gains=gains), folder / "postprocessing_gain.png", text)]


def training_charts(epochs: Sequence[Mapping[str, Any]], folder: Path) -> list[Chart]:
    """Loss, Dice, learning rate and throughput over the epochs."""
    return [
        _chart(draw, folder / f"training_{re.sub('[^a-z]+', '_', title.lower())}.png", f"{title} over the epochs")
        for title, draw in curve_charts(epochs).items()
    ]


def draw_panels(
    cases: Sequence[Case], summary: Mapping[str, Any], task: Task, folder: Path, workers: int
) -> dict[str, list[Path]]:
    """Draw the cases' panels and montages in worker processes; returns case -> PNGs, in the order of ``cases``.

    Raises:
        UserError: an image cannot be read.
    """
    rows = {row["case"]: row for row in summary["per_case"]}
    jobs = [
        PanelJob(
            case=case,
            task=task,
            labels=summary["classes"],
            titles=_titles(rows[case.name]),
            panel=folder / f"{_file_name(case.name)}.png",
            montage=folder / f"{_file_name(case.name)}_slices.png",
        )
        for case in cases
    ]
    montages = list(map_cases(draw_case, jobs, "drawing", workers))
    return {job.case.name: [job.panel, job.montage][: 1 + drawn] for job, drawn in zip(jobs, montages)}


def _titles(row: Mapping[str, Any]) -> dict[str, str]:
    before, after, gain = (row.get(k, math.nan) for k in ("prediction_mean_dice", "postprocessed_mean_dice", "gain"))
    titles = {}
    if not math.isnan(before):
        titles["prediction"] = f"Dice {before:.3f}"
    if not math.isnan(after):
        titles["postprocessed"] = f"Dice {after:.3f}" + ("" if math.isnan(gain) else f" ({gain:+.3f})")
    return titles


def _file_name(case: str) -> str:
    """A case's name, made fit for every file system; a checksum keeps two changed names apart, and a picture from the
    montage of another case."""
    safe = re.sub(r"[^\w.\-]", "_", case)
    return (
        safe
        if safe == case and not case.endswith("_slices")
        else f"{safe}_{hashlib.sha256(case.encode()).hexdigest()[:8]}"
    )


def _chart(draw: Callable[[Figure, Theme], None], path: Path, text: str) -> Chart:
    light, dark = save_chart(draw, path)
    return Chart(light, dark, text)


def _defined(values: Any) -> list[float]:
    return [value for value in values if not math.isnan(value)]
