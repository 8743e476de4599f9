"""Writes the split of the lung X-rays: training, validation and test 7:1:2, by a fixed seed.

    python benchmarks/lung_split.py --dataset_dir /data/LungXray --output bundle/configs/tasks/lung_xray_splits.json

Stratified by hospital and diagnosis, both of which stand in the file names (MCUCXR or CHNCXR, ending in _0 for
normal and _1 for tuberculosis). The file has two folds with the same training cases: fold 0 holds out the validation
cases, fold 1 the test cases, which take no part in training or in the choice of the epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
SEED = 12345
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def split(names: Sequence[str], seed: int = SEED) -> dict[str, list[str]]:
    """Case names -> {"train", "validation", "test"}, each sorted."""
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(names):
        hospital, _, diagnosis = name.split("_")
        strata[hospital, diagnosis].append(name)
    random = np.random.RandomState(seed)
    parts: dict[str, list[str]] = {part: [] for part in SHARES}
    for key in sorted(strata):
        members = [strata[key][i] for i in random.permutation(len(strata[key]))]
        bounds = np.round(np.cumsum(list(SHARES.values())) * len(members)).astype(int)
        for part, start, end in zip(parts, [0, *bounds], bounds):
            parts[part] += members[start:end]
    return {part: sorted(members) for part, members in parts.items()}


def main() -> None:
    from scripts.data.layouts import read_dataset

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    parts = split([case["name"] for case in read_dataset(args.dataset_dir).cases])
    folds = [{"train": parts["train"], "val": parts[held_out]} for held_out in ("validation", "test")]
    args.output.write_text(json.dumps(folds, indent=1) + "\n", encoding="utf-8")
    print({part: len(members) for part, members in parts.items()}, f"-> {args.output}")


if __name__ == "__main__":
    main()
