"""What many cases come to: mean, SD and median per class, as a table and as files."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common import readable_json
from ..common.atomic_writing import replacing
from .scores import METRICS, size_metrics

__all__ = ["format_summary", "metric_columns", "summarize", "write_csv", "write_json"]

Row = Mapping[str, Any]
Summary = dict[str, dict[str, dict[str, float | int]]]

_SIZES = [size_metrics(dims, spacing) for dims in (2, 3) for spacing in (None, [1.0] * dims)]
_KNOWN = {*METRICS, *(name for names in _SIZES for name in names)}


def metric_columns(rows: Iterable[Row]) -> list[str]:
    """The keys of the rows that are metrics, in the order in which they first come."""
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key in _KNOWN]


def summarize(rows: Sequence[Row]) -> Summary:
    """Summarise the scores of all cases.

    Args:
        rows: one a case and class: {"case", "class", metric: value, …}; a metric that is NaN or missing is undefined.

    Returns:
        class -> metric -> {"mean", "sd", "median": over the cases where it is defined, NaN where there are too few;
        "defined": their number; "cases": the number of all}.
    """
    metrics = metric_columns(rows)
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(row)
    return {
        name: {metric: _statistics([row.get(metric, math.nan) for row in own]) for metric in metrics}
        for name, own in by_class.items()
    }


def format_summary(cases: int, summary: Summary, metrics: Sequence[str] = METRICS) -> str:
    """A table for the log: classes down, mean ± SD of the metrics across, the mean alone where no SD is defined."""
    width = max(map(len, summary), default=0) + 2
    rows = [[name.ljust(width), *(_cell(own[metric]) for metric in metrics)] for name, own in summary.items()]
    column = max(18, 2 + max((len(cell) for row in rows for cell in row[1:]), default=0))  # pixels can be hundreds
    lines = [row[0] + "".join(f"{cell:>{column}}" for cell in row[1:]) for row in [[" " * width, *metrics], *rows]]
    return "\n".join([f"{cases} cases, mean ± SD", *lines])


def _cell(values: Mapping[str, float]) -> str:
    return f"{values['mean']:.4f}" + ("" if math.isnan(values["sd"]) else f" ± {values['sd']:.4f}")


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as a table: case, class, the metrics, then everything else. NaN stays "nan".

    Raises:
        OSError: the file cannot be written.
    """
    metrics = metric_columns(rows)
    others = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in metrics]
    first = [key for key in ("case", "class") if key in others]
    columns = [*first, *metrics, *(key for key in others if key not in first)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, content: Any) -> None:
    """Write nested dicts, lists and numbers; NaN and infinities, which JSON lacks, become null.

    Raises:
        OSError: the file cannot be written.
    """
    readable_json.write_json(Path(path), readable_json.without_nan(content))


def _statistics(values: Sequence[float]) -> dict[str, float | int]:
    defined = [value for value in values if not math.isnan(value)]
    return {
        "mean": statistics.fmean(defined) if defined else math.nan,
        "sd": statistics.stdev(defined) if len(defined) > 1 else math.nan,
        "median": statistics.median(defined) if defined else math.nan,
        "defined": len(defined),
        "cases": len(values),
    }
