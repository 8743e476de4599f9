"""What the label values of a task mean, read from its overlay."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common import BUNDLE_ROOT
from ..common.errors import UserError

__all__ = ["Task", "read_task", "task_of"]


@dataclass(frozen=True)
class Task:
    """The classes of a task; all unknown (None) without an overlay.

    Args:
        labels: name -> value of the foreground classes, in ascending order of the value.
        regions: name -> names of labels.
        ignore_label: value of unlabelled voxels.
        image_dims: 2 or 3, the dimensions that images are read with: a volume of one slice is an image where it is 2.
        name: of the task.
    """

    labels: Mapping[str, int] | None = None
    regions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignore_label: int | None = None
    image_dims: int | None = None
    name: str | None = None


def read_task(*paths: str | Path) -> Task:
    """Read a task from its overlay (configs/tasks/NAME.json), or several, of which a later one overrides the earlier.

    What an overlay does not say itself, the one says that it names as its task_file.

    Raises:
        UserError: one is missing or no JSON, its task_file is no path, they declare no labels, or a region names none
            of them.
    """
    if not paths:
        return Task()
    config: dict[str, Any] = {}
    for path in paths:
        overlay = _read_overlay(path)
        config |= _base_of(overlay, path) | overlay
    return task_of(config, ", ".join(map(str, paths)))


def task_of(config: Mapping[str, Any], shown: str) -> Task:
    """The task that the settings of an overlay, or of several together, describe.

    Args:
        shown: where they come from, for messages.

    Raises:
        UserError: they declare no labels, or a region names none of them.
    """
    labels, regions = config.get("labels"), config.get("regions") or {}
    if not isinstance(labels, dict) or not labels or not all(type(v) is int and v > 0 for v in labels.values()):
        raise UserError(f'{shown} needs "labels": {{"name": value above 0, …}}: give an overlay of configs/tasks')
    if not isinstance(regions, dict) or not all(_is_names(names) for names in regions.values()):
        raise UserError(f'{shown}: "regions" must be {{"name": ["label", …], …}}, not {regions}')
    if unknown := sorted({name for names in regions.values() for name in names} - labels.keys()):
        raise UserError(f"{shown}: the regions name {', '.join(unknown)}, which the labels do not have")
    dims = 3 if config.get("slice_axis") is not None else config.get("spatial_dims")
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    return Task(ordered, regions, config.get("ignore_label"), dims, config.get("name"))


def _is_names(names: Any) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _base_of(overlay: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The overlay that another one names as its task_file; {} where it names none."""
    named = overlay.get("task_file")
    if named is None:
        return {}
    in_bundle = re.fullmatch(r"\$ *@bundle_root *\+ *'/?([^']+)'", str(named))  # as the shipped ones write it
    if not in_bundle and str(named).startswith("$"):
        raise UserError(f"{path}: task_file must be a path, not {named}")
    return _read_overlay(BUNDLE_ROOT / in_bundle[1] if in_bundle else str(named))


def _read_overlay(path: str | Path) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the task {path} cannot be read: {error}; give an overlay of configs/tasks") from error
    return config if isinstance(config, dict) else {}
