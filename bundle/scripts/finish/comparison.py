"""Which of several configurations to predict with, by their scores of the same held-out cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..common.errors import UserError
from ..common.readable_json import read_json
from ..common.run_folder import ScoresFolder
from ..engines.weights import read_weights
from .configuration import Configuration

__all__ = ["check_comparable", "compare", "format_comparison"]


def check_comparable(configurations: Sequence[Configuration]) -> None:
    """Refuse configurations that have the same name, other classes, or no held-out case.

    Raises:
        UserError: names them.
    """
    names = [configuration.name for configuration in configurations]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'{names.count(name)} configurations are called {name}: give each another "name"')
    first = configurations[0]
    for other in configurations[1:]:
        if other.task.labels != first.task.labels:
            raise UserError(f"{first.name} and {other.name} have different labels, so their scores cannot be compared")
    for configuration in configurations:
        if len(configurations) > 1 and not configuration.held_out:
            raise UserError(f"{configuration.name} has no trained fold that holds cases out: it cannot be compared")


def compare(configurations: Sequence[Configuration], scores: Mapping[str, ScoresFolder]) -> dict[str, Any]:
    """Compare by the mean Dice of the cases that all of them held out, case by case.

    The best is chosen; where another one's difference to it is within the standard error of that difference, the one
    with the fewest parameters.

    Args:
        scores: name of a configuration -> what its held-out cases came to.

    Returns:
        {"cases": that were compared, "chosen": name, "best": name, "configurations": [{"name", "dice", "parameters",
        "difference": to the best, "standard_error": of the difference}, …], best first}.

    Raises:
        UserError: no case, or only one, was held out by all.
    """
    dice = {one.name: case_dice(read_json(scores[one.name].metrics), one.task.labels or {}) for one in configurations}
    cases = sorted(set.intersection(*(set(own) for own in dice.values())))
    if len(cases) < 2:
        raise UserError(
            f"{len(cases)} case(s) were held out by each of {', '.join(dice)}: train them with the same folds"
        )
    means = {name: statistics.fmean(own[case] for case in cases) for name, own in dice.items()}
    best = max(means, key=means.__getitem__)
    rows = []
    for one in sorted(configurations, key=lambda one: -means[one.name]):
        differences = [dice[one.name][case] - dice[best][case] for case in cases]
        row = {"name": one.name, "dice": means[one.name], "parameters": parameters_of(one)}
        row |= {"difference": statistics.fmean(differences)}
        rows.append(row | {"standard_error": statistics.stdev(differences) / math.sqrt(len(cases))})
    as_good = [row for row in rows if -row["difference"] <= row["standard_error"]]
    chosen = min(as_good, key=lambda row: row["parameters"])  # of equals the better
    return {"cases": len(cases), "chosen": chosen["name"], "best": best, "configurations": rows}


def case_dice(metrics: Mapping[str, Any], labels: Mapping[str, int]) -> dict[str, float]:
    """Case -> mean Dice of its classes, where it is defined for one of them; regions do not count.

    Args:
        metrics: the content of a metrics.json.
    """
    found: dict[str, list[float]] = {}
    for row in metrics["per_case"]:
        if row["class"] in labels and row["dice"] is not None:
            found.setdefault(row["case"], []).append(row["dice"])
    return {case: statistics.fmean(values) for case, values in found.items()}


def parameters_of(configuration: Configuration) -> int:
    """How many numbers one fold's weights are."""
    return sum(tensor.numel() for tensor in read_weights(configuration.weights[0]).values())


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """A table for the terminal, and what was chosen why."""
    rows = comparison["configurations"]
    width = max(len(row["name"]) for row in rows) + 2
    lines = [f"{comparison['cases']} cases that all held out"]
    lines.append(f"{'':<{width}}{'mean Dice':>10}{'difference':>22}{'parameters':>13}")
    for row in rows:
        difference = (
            f"{row['difference']:+.4f} ± {row['standard_error']:.4f}" if row["name"] != comparison["best"] else ""
        )
        lines.append(f"{row['name']:<{width}}{row['dice']:>10.4f}{difference:>22}{row['parameters']:>13,}")
    simpler = comparison["chosen"] != comparison["best"]
    why = "the smallest within the standard error of the best" if simpler else "the best"
    return "\n".join([*lines, f"taken: {comparison['chosen']}, {why}"])
