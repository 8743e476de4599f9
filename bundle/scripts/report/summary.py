"""Every number of the report, as summary.json holds it (docs/report.md describes the keys)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..common.errors import first_few
from ..metrics import size_metrics, summarize
from .scoring import CaseResult, absent_scores

__all__ = ["classes_of", "complete", "gain", "mean_score", "rank", "summary_of"]

RESULTS = ("prediction", "postprocessed")


def classes_of(results: Iterable[CaseResult]) -> dict[str, int]:
    """Every class -> its value, in ascending order of the value."""
    return dict(sorted({item for result in results for item in result.labels.items()}, key=lambda item: item[1]))


def complete(results: Sequence[CaseResult], labels: Mapping[str, int]) -> list[CaseResult]:
    """Give each case scores of the classes that only other cases have (where no task declares them)."""
    return [_with_classes(result, labels) for result in results]


def _with_classes(result: CaseResult, labels: Mapping[str, int]) -> CaseResult:
    if labels.keys() <= result.labels.keys():
        return result
    absent = absent_scores(result)
    filled = [
        None if scores is None else {name: scores.get(name, absent) for name in [*labels, *scores]}
        for scores in (result.prediction, result.postprocessed)
    ]
    return replace(result, labels=dict(labels), prediction=filled[0], postprocessed=filled[1])


def mean_score(scores: Mapping[str, Mapping[str, float]], labels: Iterable[str], metric: str = "dice") -> float:
    """Mean of a metric over the classes where it is defined, NaN where it is defined in none. Regions, which repeat
    classes, do not count."""
    values = [scores[name].get(metric, math.nan) for name in labels]
    return statistics.fmean(defined) if (defined := [v for v in values if not math.isnan(v)]) else math.nan


def gain(unit: str, before: float, after: float) -> float:
    """By how much ``after`` is better than ``before``: positive is better, whatever the metric's direction.

    Metrics without a unit are ratios, best at 1; those with one are distances and errors, best at 0.
    """
    return abs(before) - abs(after) if unit else after - before


def rank(results: Sequence[CaseResult]) -> list[CaseResult]:
    """Worst final mean Dice first, undefined ones last; without references the smallest prediction first."""

    def key(result: CaseResult) -> tuple[float, str]:
        final = result.postprocessed or result.prediction
        size = size_metrics(len(result.shape), result.spacing)[0]
        score = mean_score(final, result.labels, "dice" if "dice" in result.units else size)
        return (math.inf if math.isnan(score) else score, result.name)

    return sorted(results, key=key)


def summary_of(results: Sequence[CaseResult], labels: Mapping[str, int], tolerance: float) -> dict[str, Any]:
    """What can be said of all cases together and of each; see docs/report.md."""
    units = {metric: unit for result in results for metric, unit in result.units.items()}
    scored = "dice" in units
    per_case = {kind: _rows(results, kind) for kind in RESULTS}
    summary = {
        "cases": len(results),
        "classes": dict(labels),
        "regions": [name for name in results[0].prediction if name not in labels],
        "units": units,
        "tolerance": tolerance if scored else None,
        "results": {kind: summarize(rows) for kind, rows in per_case.items() if rows},
        "postprocessing": _postprocessing(results, units) if scored and per_case["postprocessed"] else None,
        "worst_first": [result.name for result in rank(results)],
        "per_case": [_case(result) for result in results],
        "notes": _notes(results, scored),
    }
    return summary


def _rows(results: Sequence[CaseResult], kind: str) -> list[dict[str, Any]]:
    scored = [(result.name, getattr(result, kind)) for result in results]
    return [
        {"case": case, "class": name, **values} for case, scores in scored if scores for name, values in scores.items()
    ]


def _case(result: CaseResult) -> dict[str, Any]:
    row: dict[str, Any] = {"case": result.name, "shape": result.shape, "spacing": result.spacing}
    for kind in RESULTS:
        if scores := getattr(result, kind):
            row[kind] = scores
            row[f"{kind}_mean_dice"] = mean_score(scores, result.labels)
    if result.postprocessed:
        row["gain"] = _case_gain(result)
        row["change"] = _change(row["gain"])
    return row


def _case_gain(result: CaseResult) -> float:
    """Gain in mean Dice over the classes that are defined before and after."""
    before, after = result.prediction, result.postprocessed
    differences = [
        gain("", before[name].get("dice", math.nan), after[name].get("dice", math.nan)) for name in result.labels
    ]
    return statistics.fmean(defined) if (defined := [d for d in differences if not math.isnan(d)]) else math.nan


def _change(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "improved" if value > 0 else "degraded" if value < 0 else "unchanged"


def _postprocessing(results: Sequence[CaseResult], units: Mapping[str, str]) -> dict[str, Any]:
    changes = [_change(_case_gain(result)) for result in results]
    sizes = {metric for r in results for metric in size_metrics(len(r.shape), r.spacing)[:2]}
    judged = [metric for metric in units if metric not in sizes]  # a size alone is neither good nor bad
    return {
        "cases": _counts(changes),
        "gain": {
            name: {metric: _gains(results, name, metric, units[metric]) for metric in judged}
            for name in results[0].prediction
        },
    }


def _gains(results: Sequence[CaseResult], name: str, metric: str, unit: str) -> dict[str, Any]:
    values = [gain(unit, r.prediction[name][metric], r.postprocessed[name][metric]) for r in results]
    defined = [value for value in values if not math.isnan(value)]
    return {"mean": statistics.fmean(defined) if defined else math.nan, **_counts([_change(v) for v in values])}


def _counts(changes: Sequence[str | None]) -> dict[str, int]:
    return {
        **{kind: changes.count(kind) for kind in ("improved", "degraded", "unchanged")},
        "undefined": changes.count(None),
    }


def _notes(results: Sequence[CaseResult], scored: bool) -> list[str]:
    notes = []
    if len(results) == 1:
        notes.append("One case only: its standard deviation is undefined.")
    if not scored:
        notes.append("Without references there are no scores, only sizes.")
    elif not any(result.labelled for result in results):
        notes.append("No reference holds any foreground.")
    empty = [result.name for result in results if not result.predicted]
    if empty:
        notes.append(f"{len(empty)} prediction(s) without any foreground: {first_few(empty, 10)}.")
    return notes
