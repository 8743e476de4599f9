"""Deciding which rules help, from held-out predictions and their labels.

nnU-Net's rule first, then two more, each tried on top of what was adopted before:

1. keep only the largest component of the whole foreground: adopted if the mean of the classes' Dice rises;
2. for each class in the order of the task, keep only its largest component: adopted if its Dice rises;
3. for each class, remove components under a size; the sizes that are tried lie just above quantiles of the sizes of
   the components that touch no voxel of their class; the one with the highest Dice is adopted if that rises;
4. for each class, fill its holes: adopted if its Dice rises.

No rule is adopted that lowers the mean Dice of any class or region. A class's Dice is its mean over the cases where
it is defined, so that a case whose false alarms all go does not count as a failure any more.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..common.errors import UserError
from ..common.workers import map_cases
from ..images.pairs import Pair
from ..images.task import Task
from ..metrics import class_groups
from .apply import Rules, describe, no_rules
from .evidence import CaseEvidence, component_evidence, hole_evidence

__all__ = ["FEW_CASES", "NothingToLearnError", "determine", "format_evidence"]

FEW_CASES = 10  # from fewer, what helps by chance is adopted too

QUANTILES = (0.25, 0.5, 0.75, 0.9, 1.0)


class NothingToLearnError(UserError):
    """The cases can be read, but no rule can come of them: they are too few, or there is nothing to clean."""


def determine(pairs: Sequence[Pair], task: Task, workers: int | None = None) -> Rules:
    """Decide on the rules for a task. Each file is read twice.

    Args:
        pairs: at least two cases that the model was not trained on.
        workers: processes, see map_cases.

    Returns:
        Rules with the task's image_dims and their evidence, ready for postprocessing.json: "cases", "dice_before" and
        "dice_after" (class or region -> mean, null where undefined), "defined_cases" (where it is defined before) and
        "steps", one for each candidate in the order tried: {"rule", "class", "value", "adopted", "reason", "before",
        "after", "cases_improved", "cases_degraded"} (of the class's Dice, or of the mean over classes).

    Raises:
        NothingToLearnError: fewer than two cases, or no foreground at all.
        UserError: cases that cannot be used (all are listed), or cases with and without a spacing.
    """
    if len(pairs) < 2:
        raise NothingToLearnError(
            f"{len(pairs)} case is too few to learn postprocessing from: whatever helps it would be adopted. Give the "
            "held-out predictions of a whole fold, or of all folds"
        )
    cases = list(map_cases(partial(component_evidence, task=task), pairs, "components", workers))
    _check_usable(cases)
    search = Search(cases, task)
    search.try_foreground()
    for name in task.labels:
        search.try_largest(name)
    for name in task.labels:
        search.try_sizes(name)
    holes = map_cases(partial(hole_evidence, task=task, rules=search.rules), pairs, "holes", workers)
    search.try_holes(np.stack(list(holes)))
    return search.result()


def format_evidence(rules: Rules) -> str:
    """What was adopted, and the mean Dice before and after."""
    evidence = rules["evidence"]
    before, after, defined = (evidence[key] for key in ("dice_before", "dice_after", "defined_cases"))
    width = max(map(len, before)) + 2
    lines = [f"{evidence['cases']} cases; adopted: {describe(rules)}"]
    lines.append(f"{'mean Dice':<{width}}{'before':>10}{'after':>10}{'gain':>10}{'cases':>8}")
    for name, value in before.items():
        scores = [value, after[name], None if value is None or after[name] is None else after[name] - value]
        cells = [f"{'-':>10}" if score is None else f"{score:10.4f}" for score in scores]
        lines.append(f"{name:<{width}}{''.join(cells)}{defined[name]:8}")
    return "\n".join(lines)


@dataclass
class Trial:
    """A candidate: what it would make of the cases, and which setting of the rules it stands for."""

    rule: str
    name: str | None
    value: Any
    confusion: np.ndarray


class Search:
    """The rules adopted so far, and (cases, predicted class, reference class) voxels under them."""

    def __init__(self, cases: Sequence[CaseEvidence], task: Task) -> None:
        self.task = task
        self.groups = class_groups(task.labels, task.regions)
        self.index = {name: i for i, name in enumerate(task.labels, 1)}
        self.rules = no_rules(task.labels)
        self.steps: list[dict[str, Any]] = []
        self.unit = cases[0].unit
        tables = [case.components for case in cases]
        self.case = np.repeat(np.arange(len(cases)), [len(table.size) for table in tables])
        self.classes, self.main, self.size, self.count, self.order, self.overlap = (
            np.concatenate([getattr(table, field) for table in tables])
            for field in ("classes", "main", "size", "count", "order", "overlap")
        )
        self.measure = self.size * np.array([case.voxel for case in cases])[self.case]
        self.reference = np.stack([case.reference for case in cases])
        self.confusion = self._count(np.zeros((len(cases), *[len(self.index) + 1] * 2), np.int64), self.rules)
        self.start = self.dice(self.confusion)

    def try_foreground(self) -> None:
        changed = self.rules | {"largest_component_of_foreground": True}
        trial = Trial("largest_component_of_foreground", None, True, self._count(self.confusion, changed))
        if self._decide([trial]):
            self.rules = changed

    def try_largest(self, name: str) -> None:
        self._try_class(name, "largest_component", [True])

    def try_sizes(self, name: str) -> None:
        missed = self._kept(name, self.rules) & (self.overlap[np.arange(len(self.classes)), self.classes] == 0)
        values = _thresholds(self.measure[missed], self.count[missed], whole=self.unit in ("voxels", "px"))
        if values:
            self._try_class(name, "min_size", [{"value": value, "unit": self.unit} for value in values])
        else:
            self._record(Trial("min_size", name, None, self.confusion), "no component misses its class entirely")

    def try_holes(self, holes: np.ndarray) -> None:
        """``holes``: (cases, class of the hole, reference class) voxels, under the rules so far."""
        for name, index in self.index.items():
            confusion = self.confusion.copy()
            confusion[:, index] += holes[:, index]
            if self._decide([Trial("fill_holes", name, True, confusion)]):
                self.rules["classes"][name]["fill_holes"] = True

    def dice(self, confusion: np.ndarray) -> dict[str, np.ndarray]:
        """Class or region -> Dice of each case, NaN where it is in neither map."""
        result = {}
        for name, members in self.groups.items():
            shared = confusion[:, members][:, :, members].sum((1, 2))
            both = confusion[:, members].sum((1, 2)) + self.reference[:, members].sum(1)
            result[name] = np.where(both > 0, 2 * shared / np.maximum(both, 1), np.nan)
        return result

    def result(self) -> Rules:
        start, end = self.start, self.dice(self.confusion)
        return self.rules | {
            "image_dims": self.task.image_dims,
            "evidence": {
                "cases": len(self.reference),
                "dice_before": {name: _mean(values) for name, values in start.items()},
                "dice_after": {name: _mean(values) for name, values in end.items()},
                "defined_cases": {name: int(np.isfinite(values).sum()) for name, values in start.items()},
                "steps": self.steps,
            },
        }

    def _try_class(self, name: str, rule: str, values: Sequence[Any]) -> None:
        changes = [self._with(name, rule, value) for value in values]
        trials = [Trial(rule, name, v, self._count(self.confusion, r, name)) for v, r in zip(values, changes)]
        chosen = self._decide(trials)
        if chosen:
            self.rules = changes[trials.index(chosen)]

    def _with(self, name: str, rule: str, value: Any) -> Rules:
        classes = self.rules["classes"]
        return self.rules | {"classes": classes | {name: classes[name] | {rule: value}}}

    def _decide(self, trials: Sequence[Trial]) -> Trial | None:
        """Adopt the best of the trials that may be adopted, and record all of them."""
        reasons = [self._objection(trial) for trial in trials]
        allowed = [trial for trial, reason in zip(trials, reasons) if reason is None]
        best = max(allowed, key=self._score, default=None)
        for trial, reason in zip(trials, reasons):
            self._record(trial, reason or ("adopted" if trial is best else "another size is better"), trial is best)
        if best is not None:
            self.confusion = best.confusion
        return best

    def _objection(self, trial: Trial) -> str | None:
        """Why a trial must not be adopted, None if it may."""
        if np.array_equal(trial.confusion, self.confusion):
            return "changes no prediction"
        now = Trial(trial.rule, trial.name, None, self.confusion)
        before, after = self.dice(self.confusion), self.dice(trial.confusion)
        for name in self.groups:
            if _value(after[name]) < _value(before[name]):
                return f"the Dice of {name} would fall"
        if not self._score(trial) > self._score(now):
            return f"the Dice of {trial.name or 'the classes'} would not rise"
        return None

    def _score(self, trial: Trial) -> float:
        """Mean Dice of the trial's class, or mean over the classes of theirs."""
        dice = self.dice(trial.confusion)
        means = [_value(dice[name]) for name in ([trial.name] if trial.name else self.task.labels)]
        return float(np.mean([mean for mean in means if np.isfinite(mean)] or [np.nan]))

    def _record(self, trial: Trial, reason: str, adopted: bool = False) -> None:
        before, after = self.dice(self.confusion), self.dice(trial.confusion)
        names = [trial.name] if trial.name else list(self.task.labels)
        gain = np.nansum([np.nan_to_num(after[name]) - np.nan_to_num(before[name]) for name in names], axis=0)
        step = {"rule": trial.rule, "class": trial.name, "value": trial.value, "adopted": adopted, "reason": reason}
        step |= {"before": {name: _mean(v) for name, v in before.items()}}
        step |= {"after": {name: _mean(v) for name, v in after.items()}}
        cleared = np.any([np.isfinite(before[name]) & ~np.isfinite(after[name]) for name in names], axis=0)
        step |= {"cases_improved": int(((gain > 0) | cleared).sum()), "cases_degraded": int((gain < 0).sum())}
        self.steps.append(step)

    def _count(self, confusion: np.ndarray, rules: Rules, only: str | None = None) -> np.ndarray:
        """``confusion`` with the rows of all classes, or ``only`` one, counted anew under some rules."""
        result = confusion.copy()
        for name in [only] if only else self.task.labels:
            kept = self._kept(name, rules)
            result[:, self.index[name]] = 0
            np.add.at(result[:, self.index[name]], self.case[kept], self.overlap[kept])
        return result

    def _kept(self, name: str, rules: Rules) -> np.ndarray:
        """Row of the component tables -> whether it belongs to the class and stays."""
        rule = rules["classes"][name]
        kept = self.classes == self.index[name]
        if rules["largest_component_of_foreground"]:
            kept &= self.main
        if rule["largest_component"]:
            rows = np.flatnonzero(kept)
            ranking = rows[np.lexsort((self.order[rows], -self.size[rows], self.case[rows]))]
            kept[:] = False
            kept[ranking[np.unique(self.case[ranking], return_index=True)[1]]] = True
        if rule["min_size"]:
            kept &= self.measure >= rule["min_size"]["value"]
        return kept


def _check_usable(cases: Sequence[CaseEvidence]) -> None:
    if not any(case.reference[1:].any() for case in cases):
        raise NothingToLearnError(
            f"none of the {len(cases)} labels holds any of the task's classes: nothing can be learned"
        )
    if not any(len(case.components.size) for case in cases):
        raise NothingToLearnError(f"none of the {len(cases)} predictions holds any class: there is nothing to clean")
    units = sorted({case.unit for case in cases})
    if len(units) > 1:
        raise UserError(f"the cases are measured in {' and '.join(units)}: put them into one format")


def _thresholds(sizes: np.ndarray, counts: np.ndarray, whole: bool) -> list[float]:
    """Sizes just above quantiles of ``sizes``, each of which stands for ``counts`` components, in two digits."""
    if not len(sizes):
        return []
    order = np.argsort(sizes)
    cumulated = np.cumsum(counts[order]) / counts.sum()
    quantiles = sizes[order][np.searchsorted(cumulated, np.array(QUANTILES) - 1e-9)]
    return sorted({_just_above(size, whole) for size in quantiles.tolist()})


def _just_above(size: float, whole: bool) -> float:
    if whole:
        return int(size) + 1
    step = 10.0 ** (np.floor(np.log10(size)) - 1)
    return float(f"{(np.floor(size / step * (1 + 1e-9)) + 1) * step:.2g}")


def _value(dice: np.ndarray) -> float:
    """Mean over the cases where it is defined, NaN without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(np.nanmean(dice))


def _mean(dice: np.ndarray) -> float | None:
    mean = _value(dice)
    return round(mean, 6) if np.isfinite(mean) else None
