"""Which cases a run trains on and which it holds out, from a data set in the MSD layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

__all__ = ["case_name", "k_fold", "load_cases", "load_dataset_json"]

NUM_FOLDS = 5
FOLD_SEED = 12345


def load_cases(
    dataset_dir: str | Path,
    section: str,
    fold: int | str,
    in_channels: int,
    labels: Mapping[str, int],
    limit: int | None = None,
) -> list[dict[str, str]]:
    """The training or validation cases of one fold.

    The folds are nnU-Net's: KFold(5, shuffle, seed 12345) on the sorted case names. With ``fold="all"``
    every case is in both sections.

    Args:
        dataset_dir: folder with MSD's dataset.json ("training": [{"image", "label"}, …]).
        section: "training" or "validation".
        fold: 0 to 4, or "all".
        in_channels, labels: what the config declares; compared with dataset.json.
        limit: take only the first cases, for a quick trial.

    Returns:
        A list of {"image": path, "label": path}, sorted by case name.

    Raises:
        UserError: dataset.json is missing, broken or contradicts the config, a file that it names is
            missing, or the fold does not exist.
    """
    dataset_dir = Path(dataset_dir)
    description = load_dataset_json(dataset_dir)
    _check_against_config(dataset_dir / "dataset.json", description, in_channels, labels)
    cases = _existing_cases(dataset_dir, description["training"])
    if str(fold) != "all":
        if str(fold) not in map(str, range(NUM_FOLDS)):
            raise UserError(f"fold must be 0 to {NUM_FOLDS - 1} or 'all', not {fold!r}")
        if len(cases) < NUM_FOLDS:
            raise UserError(
                f"{dataset_dir} has {len(cases)} training case(s), too few for {NUM_FOLDS} folds: use --fold all"
            )
        training, validation = k_fold(len(cases))[int(fold)]
        cases = [cases[i] for i in (training if section == "training" else validation)]
    return cases[:limit]


def load_dataset_json(dataset_dir: Path) -> dict[str, Any]:
    """Read an MSD dataset.json.

    Raises:
        UserError: the folder or file is missing, or is not such a file.
    """
    path = dataset_dir / "dataset.json"
    if not dataset_dir.is_dir():
        raise UserError(f"the data set folder {dataset_dir} does not exist: give it with --dataset_dir")
    if not path.is_file():
        raise UserError(f"{path} is missing: --dataset_dir must be a folder in the MSD layout (dataset.json in it)")
    try:
        description = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    training = description.get("training") if isinstance(description, dict) else None
    if not training or not all(isinstance(c, dict) and {"image", "label"} <= c.keys() for c in training):
        raise UserError(f'{path} needs a list "training" of {{"image": …, "label": …}}')
    return description


def case_name(path: str | Path) -> str:
    """File name without its ending: /a/case_1.nii.gz -> case_1."""
    name = Path(path).name
    return name[: -len(".nii.gz")] if name.endswith(".nii.gz") else Path(name).stem


def k_fold(count: int, folds: int = NUM_FOLDS, seed: int = FOLD_SEED) -> list[tuple[list[int], list[int]]]:
    """Indices (training, validation) of each fold, the same as scikit-learn's KFold(folds, shuffle, seed)."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    parts = [set(part.tolist()) for part in np.array_split(order, folds)]
    return [([i for i in range(count) if i not in part], sorted(part)) for part in parts]


def _existing_cases(dataset_dir: Path, training: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    cases = [{key: str(dataset_dir / case[key]) for key in ("image", "label")} for case in training]
    missing = [path for case in cases for path in case.values() if not Path(path).is_file()]
    if missing:
        shown = "\n  ".join(missing[:10]) + (f"\n  … and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(f"{dataset_dir}/dataset.json names {len(missing)} file(s) that are missing:\n  {shown}")
    return sorted(cases, key=lambda case: case_name(case["image"]))


def _check_against_config(
    path: Path, description: Mapping[str, Any], in_channels: int, labels: Mapping[str, int]
) -> None:
    hint = "use the task overlay made for this data set (configs/tasks/*.json)"
    channels = description.get("modality") or description.get("channel_names")
    if channels and len(channels) != in_channels:
        raise UserError(f"{path} declares {len(channels)} channel(s), the config has in_channels={in_channels}: {hint}")
    declared = {int(value) for value in description.get("labels", {}) if str(value).isdigit()} - {0}
    if declared and declared != set(labels.values()):
        raise UserError(f"{path} declares the labels {sorted(declared)}, the config has {dict(labels)}: {hint}")
