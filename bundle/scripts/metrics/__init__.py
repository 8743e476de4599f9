"""Scores of predicted label maps: one definition for evaluation, cross-validation and the report.

scores.py holds the definitions, surface.py the distances, summary.py tables and files.
"""

from .scores import (
    DEFAULT_TOLERANCE,
    METRICS,
    case_scores,
    class_groups,
    class_indices,
    size_metrics,
    units,
    voxel_measure,
)
from .summary import format_summary, metric_columns, summarize, write_csv, write_json

__all__ = [
    "DEFAULT_TOLERANCE",
    "METRICS",
    "case_scores",
    "class_groups",
    "class_indices",
    "format_summary",
    "metric_columns",
    "size_metrics",
    "summarize",
    "units",
    "voxel_measure",
    "write_csv",
    "write_json",
]
