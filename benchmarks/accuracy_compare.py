"""Two rows of the accuracy tables, case by case: the folds that both were scored on, and the paired difference.

    python benchmarks/accuracy_compare.py hippocampus 5000it \
        "lightm_unet:scan_order=axes,norm_bias=1.0,stem=full lr 1e-3, warm-up, AdamW, clip 1" "plain_conv_unet"

A row's name is the one that `accuracy.py --summary` prints. With `--second-budget 10000it` the second row is taken from
another of its tables.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from accuracy_records import RESULTS, Record, load_records, row_name
from harness import markdown_table

Pairs = list[tuple[float, float]]


def row(records: Sequence[Record], task: str, budget: str, name: str) -> list[Record]:
    """Its records. Raises ValueError: there are none."""
    found = [r for r in records if (r["task"], r["budget"], row_name(r)) == (task, budget, name)]
    if not found:
        raise ValueError(f"no row of {task}, {budget}, is named {name!r}; accuracy.py --summary prints the names")
    return found


def comparison(first: Sequence[Record], second: Sequence[Record]) -> str:
    """A line a fold and one for all, each class with both rows' mean Dice (with TTA) and first minus second.

    The difference is the mean over cases ± its standard error. That says how much the choice of cases matters, not
    how much another seed would.

    Raises:
        ValueError: the two share no held-out case.
    """
    shared = paired(first, second)
    classes, folds = list(dict.fromkeys(key[2] for key in shared)), sorted({key[0] for key in shared})
    header = ["fold", "cases", *(f"{c}, {column}" for c in classes for column in ("first", "second", "difference"))]
    body = []
    for label, members in [(fold, [fold]) for fold in folds] + [(", ".join(folds), folds)] * (len(folds) > 1):
        pairs = {c: [shared[k] for k in shared if k[0] in members and k[2] == c] for c in classes}
        cells = [cell for c in classes for cell in _cells(pairs[c])]
        body.append([label, str(max(len(p) for p in pairs.values())), *cells])
    return markdown_table(header, body)


def paired(first: Sequence[Record], second: Sequence[Record]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """(fold, case, class) -> both rows' Dice, of what both were scored on.

    Raises:
        ValueError: the two share no held-out case.
    """
    firsts, seconds = _dice(first), _dice(second)
    shared = {key: (dice, seconds[key]) for key, dice in firsts.items() if key in seconds}
    if not shared:
        raise ValueError("the two rows share no held-out case: train both on the same folds")
    return shared


def _dice(records: Sequence[Record]) -> dict[tuple[str, str, str], float]:
    """(fold, case, class) -> Dice, averaged over seeds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        for case, classes in record["scores"]["tta"].items():
            for label, metrics in classes.items():
                if metrics["dice"] is not None:
                    values.setdefault((record["fold"], case, label), []).append(metrics["dice"])
    return {key: statistics.mean(found) for key, found in values.items()}


def _cells(pairs: Pairs) -> list[str]:
    return [*(f"{statistics.mean(values):.4f}" for values in zip(*pairs)), difference(pairs)]


def difference(pairs: Pairs) -> str:
    """First minus second, mean ± standard error."""
    differences = [a - b for a, b in pairs]
    error = f" ± {statistics.stdev(differences) / math.sqrt(len(pairs)):.4f}" if len(pairs) > 1 else ""
    return f"{statistics.mean(differences):+.4f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task")
    parser.add_argument("budget", help="such as 5000it")
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--second-budget", help="of the second row, if it is another")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args()
    records, budgets = load_records(args.results), (args.budget, args.second_budget or args.budget)
    try:
        rows = [row(records, args.task, *chosen) for chosen in zip(budgets, (args.first, args.second))]
        print(f"first: {args.first}, {budgets[0]}\nsecond: {args.second}, {budgets[1]}\n\n{comparison(*rows)}")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
