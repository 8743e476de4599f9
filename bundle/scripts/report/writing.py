"""The whole report, from the files of its cases to the page in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ..common.atomic_writing import replacing
from ..common.errors import UserError
from ..common.leftovers import remove_leftovers
from ..common.run_folder import SUMMARY
from ..common.workers import map_cases
from ..images.outputs import check_output_folder, open_folder
from ..images.task import Task
from ..metrics import DEFAULT_TOLERANCE, voxel_measure, write_json
from .curves import read_log
from .figures import distribution_charts, draw_panels, postprocessing_charts, training_charts
from .page import Figures, page_of
from .pairing import Case
from .scoring import CaseResult, score_case
from .summary import classes_of, complete, summary_of

__all__ = ["FIGURES", "PAGE", "PANELS", "prepare_output", "write_report"]

PAGE, FIGURES = "report.html", "figures"
PANELS = 24


def write_report(
    cases: Sequence[Case],
    output_dir: Path,
    task: Task,
    run_dir: Path | None = None,
    panels: int = PANELS,
    workers: int = 1,
    tolerance: float = DEFAULT_TOLERANCE,
    title: str | None = None,
    spread: bool = False,
) -> dict[str, Any]:
    """Score the cases, draw the worst and write the report; returns the summary.

    Args:
        output_dir: an existing folder.
        run_dir: a training run's folder, whose log.jsonl holds the curves.
        panels: how many cases are drawn, worst first; the page holds their pictures.
        workers: processes, each with one case in memory.
        tolerance: of the surface Dice in mm, or pixels where there is no spacing.
        spread: draw cases from the whole order, worst to best, at even distances.

    Raises:
        UserError: files cannot be read or do not fit together, there is no foreground anywhere, or cases are measured
            in different units.
    """
    results = list(map_cases(partial(score_case, task=task, tolerance=tolerance), cases, "scoring", workers))
    if not any(result.labelled or result.predicted for result in results):
        raise UserError(
            f"no foreground anywhere: all {len(results)} predictions{' and references' if cases[0].label else ''} are "
            "empty, so there is nothing to report; check the folders and the label values of --config_file"
        )
    _check_units(results)
    summary = _summarise(results, task, tolerance, title)
    folder = output_dir / FIGURES
    epochs, problem = read_log(run_dir) if run_dir else ([], None)
    if problem:
        print(f"note: {problem}")
        summary["notes"].append(problem)
    by_name = {case.name: case for case in cases}
    names = summary["worst_first"]
    drawn = [by_name[name] for name in (_spread(names, panels) if spread else names[:panels])]
    figures = Figures(
        distributions=distribution_charts(summary, folder),
        postprocessing=postprocessing_charts(summary, folder),
        training=training_charts(epochs, folder),
        panels=draw_panels(drawn, summary, task, folder / "cases", workers),
    )
    summary["training"] = epochs
    summary["figures"] = _listed(figures, output_dir)
    write_json(output_dir / SUMMARY, summary)
    with replacing(output_dir / PAGE) as temporary:
        temporary.write_text(page_of(summary, figures), encoding="utf-8")
    return summary


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of the names, or all, at even distances; the first and the last are among them."""
    if count >= len(names):
        return list(names)
    step = (len(names) - 1) / max(count - 1, 1)
    return [names[round(i * step)] for i in range(count)]


def _check_units(results: Sequence[CaseResult]) -> None:
    """Sizes in ml, in mm² and in pixels make no mean."""
    first, *others = [(result.name, voxel_measure(len(result.shape), result.spacing)[1]) for result in results]
    for name, unit in others:
        if unit != first[1]:
            raise UserError(f"{first[0]} is measured in {first[1]}, but {name} in {unit}: report on them apart")


def _summarise(results: Sequence[CaseResult], task: Task, tolerance: float, title: str | None) -> dict[str, Any]:
    labels = dict(task.labels) if task.labels else classes_of(results)
    title = title or ("Segmentation report" + (f": {task.name}" if task.name else ""))
    created = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return {"title": title, "created": created, **summary_of(complete(results, labels), labels, tolerance)}


def _listed(figures: Figures, output_dir: Path) -> dict[str, Any]:
    """The figures' paths from the output folder."""
    charts = [*figures.distributions, *figures.postprocessing, *figures.training]

    def names(paths: Sequence[Path]) -> list[str]:
        return [path.relative_to(output_dir).as_posix() for path in paths]

    return {
        "charts": names([path for chart in charts for path in (chart.light, chart.dark)]),
        "cases": {case: names(paths) for case, paths in figures.panels.items()},
    }


def prepare_output(output_dir: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Make the folder; with ``overwrite`` take away the figures of the report that is there.

    Args:
        inputs: the folders that the report is made from.

    Raises:
        UserError: nothing may be written there (see images/outputs.py), or it holds a report and ``overwrite`` is not
            set.
    """
    check_output_folder(output_dir, "--output_dir", inputs)
    existing = [name for name in (PAGE, SUMMARY, FIGURES) if (output_dir / name).exists()]
    if existing and not overwrite:
        raise UserError(
            f"{output_dir} already holds {', '.join(existing)}: add --overwrite, or give another --output_dir"
        )
    open_folder(output_dir, "--output_dir")
    remove_leftovers(output_dir / FIGURES, within=True)
    for path in _old_figures(output_dir):
        path.unlink(missing_ok=True)


def _old_figures(output_dir: Path) -> list[Path]:
    """The figures that an earlier summary.json names; nothing outside figures/."""
    try:
        named = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))["figures"]
        paths = [*named["charts"], *(path for own in named["cases"].values() for path in own)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    folder = (output_dir / FIGURES).resolve()
    return [output_dir / path for path in paths if folder in (output_dir / path).resolve().parents]
