"""What a case's prediction says about possible rules, small enough to keep for thousands of cases.

A rule that removes components needs no image to be judged: how many voxels of each reference class a component
covers is enough to compute every Dice without it. Filled holes only move voxels between classes, which is counted
likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..images.pairs import LabelMap, Pair, read_pair
from ..images.task import Task
from ..metrics import class_indices, voxel_measure
from ..metrics.components import find_components, find_holes
from ..metrics.slabs import slabs
from .apply import Rules, remove_components

__all__ = ["CaseEvidence", "ComponentTable", "component_evidence", "hole_evidence"]


@dataclass(frozen=True)
class ComponentTable:
    """A row for each component of a prediction; small ones of a kind share a row.

    Args:
        classes: class index: 0 is the background, then 1, 2, … in the order of the task's labels.
        main: whether it belongs to the largest component of the whole foreground.
        size: voxels of one component.
        count: components in the row, all of that size.
        order: number of the component, which decides between equals; the highest possible for shared rows.
        overlap: (rows, 1 + classes) voxels of all components of the row on each reference class, ignored ones left out.
    """

    classes: np.ndarray
    main: np.ndarray
    size: np.ndarray
    count: np.ndarray
    order: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True)
class CaseEvidence:
    """One case: its components, the voxels of each reference class, and what one voxel measures in which unit."""

    components: ComponentTable
    reference: np.ndarray
    voxel: float
    unit: str


def component_evidence(pair: Pair, task: Task) -> CaseEvidence:
    """Read a case and list its components.

    Raises:
        UserError: see read_pair.
    """
    prediction, label = read_pair(pair, task)
    expected = _reference_indices(label, task)
    voxel, unit = voxel_measure(prediction.array.ndim, prediction.spacing)
    reference = sum(np.bincount(part.ravel(), minlength=len(task.labels) + 2) for part in expected)[:-1]
    return CaseEvidence(_table(prediction.array, expected, task), reference, voxel, unit)


def hole_evidence(pair: Pair, task: Task, rules: Rules) -> np.ndarray:
    """Read a case, apply the rules that remove components, and look for holes.

    Returns:
        (1 + classes, 1 + classes): voxels in holes of each class (row) on each reference class (column).
    """
    prediction, label = read_pair(pair, task)
    holes = find_holes(remove_components(prediction.array, rules, prediction.spacing))
    counts = np.zeros((len(task.labels) + 1, len(task.labels) + 2), np.int64)
    where = holes > 0
    np.add.at(counts, (class_indices(holes[where], task.labels), _reference_indices(label, task)[where]), 1)
    return counts[:, :-1]


def _reference_indices(label: LabelMap, task: Task) -> np.ndarray:
    """Class index of each voxel; one more than the highest where it is ignored."""
    names = dict(task.labels) if task.ignore_label is None else {**task.labels, "": task.ignore_label}
    return class_indices(label.array, names)


def _table(prediction: np.ndarray, expected: np.ndarray, task: Task) -> ComponentTable:
    main_voxels = _largest_foreground(prediction)
    components = find_components(prediction)
    columns, expected = len(task.labels) + 2, expected[components.box]
    overlap = np.zeros(len(components.sizes) * columns, np.int64)
    main = np.zeros(len(components.sizes), bool)
    for slab in slabs(components.numbers.shape):
        numbers = components.numbers[slab].astype(np.int64).ravel()
        overlap += np.bincount(numbers * columns + expected[slab].ravel(), minlength=len(overlap))
        main[numbers] = main_voxels[slab].ravel()
    overlap = overlap.reshape(-1, columns)[:, :-1]
    classes = class_indices(components.values, task.labels)
    rows = ComponentTable(
        classes[1:], main[1:], components.sizes[1:], np.ones(len(main) - 1, int), np.arange(1, len(main)), overlap[1:]
    )
    return _share_rows(rows)


def _largest_foreground(prediction: np.ndarray) -> np.ndarray:
    """Where the largest component of the whole foreground is, in the box of the foreground."""
    whole = find_components(prediction != 0)
    return whole.numbers == whole.largest()


def _share_rows(table: ComponentTable) -> ComponentTable:
    """Put components together that no rule tells apart: one class, size, main, and hit or miss of the class.

    The largest of each class keeps a row of its own, in the main component and outside. A noisy prediction's tens
    of thousands of specks become a few hundred rows.
    """
    missed = table.overlap[np.arange(len(table.classes)), table.classes] == 0
    group = table.classes.astype(np.int64) * 2 + table.main
    alone = np.zeros(len(group), np.int64)
    ranking = np.lexsort((table.order, -table.size, group))
    first = ranking[np.unique(group[ranking], return_index=True)[1]]
    alone[first] = 1
    keys = np.stack([group, table.size, missed, alone], 1)
    kinds, of = np.unique(keys, axis=0, return_inverse=True)
    of = of.reshape(-1)  # NumPy 2.0 gave it another shape
    overlap = np.zeros((len(kinds), table.overlap.shape[1]), np.int64)
    np.add.at(overlap, of, table.overlap)
    order = np.full(len(kinds), np.iinfo(np.int64).max)
    order[of[first]] = table.order[first]
    return ComponentTable(kinds[:, 0] // 2, kinds[:, 0] % 2 == 1, kinds[:, 1], np.bincount(of), order, overlap)
