"""How many voxels each rule changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..common.workers import map_cases
from ..images.pairs import read_label_map
from .apply import Rules, apply_rules, no_rules

__all__ = ["changed_voxels", "single_rules"]


def single_rules(rules: Rules) -> list[tuple[str, str | None, Rules]]:
    """The adopted rules one by one, in the order in which apply_rules applies them.

    Applied one after the other they do what all do together: no rule of a class touches another class's components,
    and a hole belongs to one class.

    Returns:
        [(name of the rule, its class or None for the whole foreground, rules that are this one alone), …].
    """
    labels = rules["labels"]
    found: list[tuple[str, str | None, Rules]] = []
    if rules["largest_component_of_foreground"]:
        alone = no_rules(labels) | {"largest_component_of_foreground": True}
        found.append(("largest_component_of_foreground", None, alone))
    for kinds in (("largest_component", "min_size"), ("fill_holes",)):
        for name, own in rules["classes"].items():
            for kind in filter(own.get, kinds):
                alone = no_rules(labels)
                alone["classes"][name][kind] = own[kind]
                found.append((kind, name, alone))
    return found


def changed_voxels(
    predictions: Sequence[Path], rules: Mapping[str, Any], workers: int | None = None
) -> list[dict[str, Any]]:
    """Count what each adopted rule changes in label maps that nothing has cleaned yet.

    Args:
        predictions: their files.
        rules: the content of a file of rules.
        workers: processes, see map_cases.

    Returns:
        [{"rule", "class", "voxels": of all label maps together, "cases": in how many}, …] in the order of application.

    Raises:
        UserError: a label map cannot be read, or is measured in other units than the rules.
    """
    singles = single_rules(dict(rules))
    if not singles:
        return []
    counts = np.stack(list(map_cases(partial(_count, rules=rules), predictions, "counting", workers)))
    return [
        {"rule": kind, "class": name, "voxels": int(own.sum()), "cases": int((own > 0).sum())}
        for (kind, name, _), own in zip(singles, counts.T, strict=True)
    ]


def _count(file: Path, rules: Mapping[str, Any]) -> list[int]:
    read = read_label_map(file, rules["labels"].values(), rules.get("image_dims"))
    before, counts = read.array, []
    for _, _, alone in single_rules(dict(rules)):
        after = apply_rules(before, alone, read.spacing)
        counts.append(int((after != before).sum()))
        before = after
    return counts
