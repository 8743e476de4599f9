"""The accuracy tables of the documents, from the committed records: which trainings stand in which row.

A table is a list of lines; a line names the records that it gathers and what the reader calls them. Scores and
differences are computed by accuracy.py and accuracy_compare.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from accuracy import gone, iterations, mean_sd, score_columns, summary
from accuracy_compare import difference, paired
from accuracy_records import RESULTS, Record, load_records
from harness import markdown_table

FIVE = ("0", "1", "2", "3", "4")


class Line(NamedTuple):
    """The runs of one network and variant, under the name that a table gives them."""

    label: str
    network: str
    variant: str = ""
    budget: str = "5000it"
    folds: tuple[str, ...] = ("0",)
    task: str = "hippocampus"
    seed: int | None = None

    def runs(self) -> list[Record]:
        """Its records, of all seeds unless one is given. Raises ValueError: a fold is not there."""
        key = (self.task, self.network, self.variant, self.budget)
        found = [r for r in records() if (r["task"], r["network"], r["variant"], r["budget"]) == key]
        found = [r for r in found if r["fold"] in self.folds and self.seed in (None, r["seed"])]
        if missing := set(self.folds) - {r["fold"] for r in found}:
            raise ValueError(f"no record of {key}, fold {', '.join(sorted(missing))}, in {RESULTS}")
        return found

    def named(self, label: str, **changes: object) -> Line:
        return self._replace(label=label, **changes)


@cache
def records() -> list[Record]:
    return load_records(RESULTS)


def score_table(
    lines: Sequence[Line], about: Sequence[str] = ("fold", "parameters", "iterations"), hd95: bool = True
) -> str:
    """A row a line: what ABOUT tells of its runs, then mean ± SD over their held-out cases."""
    columns = score_columns(lines[0].runs()[0])
    columns = {name: column for name, column in columns.items() if hd95 or column[2] != "hd95"}
    body = []
    for line in lines:
        runs = line.runs()
        cells = [line.label, *(ABOUT[name](runs) for name in about), *(mean_sd(runs, *c) for c in columns.values())]
        body.append(cells)
    return markdown_table(["network", *about, *columns], body)


def comparison_table(pairs: Sequence[tuple[Line, Line]], folds: bool = True) -> str:
    """A row a pair: first minus second case by case, mean ± standard error, on the folds of the first.

    `folds` False leaves their column out, for a data set with one split.
    """
    body, header = [], []
    for first, second in pairs:
        runs = first.runs(), second.named(second.label, folds=first.folds).runs()
        shared = paired(*runs)
        by_class = {name: [dice for key, dice in shared.items() if key[2] == name] for name in _column(shared, 2)}
        cells = [first.label, second.label, *[_folds(runs[0])] * folds, str(max(map(len, by_class.values())))]
        body.append([*cells, _share(*runs), *map(difference, by_class.values())])
        header = ["first", "second", *["fold"] * folds, "cases", "parameters, first of second", *by_class]
    return markdown_table(header, body, text_columns=2 + folds)


def fold_table(pairs: Mapping[str, tuple[Line, Line]]) -> str:
    """First minus second fold by fold; the key of a pair heads its columns."""
    shared = {name: paired(first.runs(), second.runs()) for name, (first, second) in pairs.items()}
    keys = next(iter(shared.values()))
    folds, classes = _column(keys, 0), _column(keys, 2)
    body = []
    for members in [*([fold] for fold in folds), folds]:
        chosen = [
            [dice for key, dice in found.items() if key[0] in members and key[2] == label]
            for found in shared.values()
            for label in classes
        ]
        body.append([", ".join(members), str(max(map(len, chosen))), *map(difference, chosen)])
    header = ["fold", "cases", *(f"{label}, {name}" for name in shared for label in classes)]
    return markdown_table(header, body)


def dice(line: Line) -> str:
    """Mean Dice with mirroring, class by class: "0.8988 / 0.8816"."""
    runs = line.runs()
    columns = [c for c in score_columns(runs[0]).values() if c[0] == "tta" and c[2:] == ("dice", "")]
    return " / ".join(mean_sd(runs, *column).split(" ± ")[0] for column in columns)


def size(line: Line) -> str:
    """Its network's parameters."""
    return _parameters(line.runs())


def all_records() -> str:
    """What accuracy.py --summary prints."""
    return summary(records())


def _column(keys: Iterable[tuple[str, ...]], index: int) -> list[str]:
    """The different values at an index of keys, in their order."""
    return list(dict.fromkeys(key[index] for key in keys))


def _folds(runs: Sequence[Record]) -> str:
    folds = tuple(sorted({run["fold"] for run in runs}))
    return "all five" if folds == FIVE else ", ".join(folds)


def _parameters(runs: Sequence[Record]) -> str:
    return f"{runs[0]['parameters']:,}"


def _share(first: Sequence[Record], second: Sequence[Record]) -> str:
    return f"{100 * first[0]['parameters'] / second[0]['parameters']:.0f} %"


ABOUT: dict[str, Callable[[Sequence[Record]], str]] = {
    "fold": _folds,
    "parameters": _parameters,
    "iterations": iterations,
    "no longer there": gone,
}
