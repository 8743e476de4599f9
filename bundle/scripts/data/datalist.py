"""Which cases a run trains on and which it holds out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.command_line import from_words
from ..common.errors import UserError, first_few
from ..images.foreign_names import composed
from .layouts import NUM_FOLDS, DatasetDescription, case_files, read_dataset

__all__ = ["Cases", "k_fold", "load_cases", "read_splits"]

FOLD_SEED = 12345


@dataclass(frozen=True)
class Cases:
    """The two sides of a fold, [{"name", "image": path or [a path per channel], "label": path}, …], sorted by name.

    Args:
        fold, source: which, and the file that says so; for messages.
        sides: training and validation cases.
    """

    fold: int | str
    source: str
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    @property
    def training(self) -> list[dict[str, Any]]:
        """What the fold trains on.

        Raises:
            UserError: nothing.
        """
        return self._side(0, "training")

    @property
    def validation(self) -> list[dict[str, Any]]:
        """What the fold holds out.

        Raises:
            UserError: nothing.
        """
        return self._side(1, "validation")

    def _side(self, side: int, name: str) -> list[dict[str, Any]]:
        if not self.sides[side]:
            raise UserError(
                f"fold {self.fold} of {self.source} has no {name} case: name some, or train on all cases with "
                "--fold all"
            )
        return self.sides[side]


@from_words
def load_cases(
    dataset_dir: str | Path,
    fold: int | str,
    in_channels: int,
    labels: Mapping[str, int],
    limit: int | None = None,
    splits: str | Path | None = None,
) -> Cases:
    """The training and validation cases of one fold.

    The folds are nnU-Net's: KFold(5, shuffle, seed 12345) on the sorted case names, or on the sorted patients
    where dataset.json names them, so that no patient is on both sides. With ``fold="all"`` every case is on both sides.

    Args:
        dataset_dir: folder with a dataset.json, in the MSD layout or nnU-Net's (see layouts.read_dataset).
        fold: 0 to 4, or "all"; with ``splits`` any of the file's.
        in_channels, labels: what the config declares; compared with dataset.json.
        limit: take only the first cases of each side, for a quick trial.
        splits: the user's own folds, as nnU-Net's splits_final.json: [{"train": [names], "val": [names]}, …].

    Raises:
        UserError: dataset.json or the split file is missing, broken or contradicts the config or the other, a
            file of a case is missing, or the fold does not exist.
    """
    dataset = read_dataset(dataset_dir)
    _check_against_config(dataset, in_channels, labels)
    _check_files(dataset)
    names = [case["name"] for case in dataset.cases]
    sides: tuple[list[str], list[str]] = (names, names)
    if str(fold) != "all":
        folds = _own_folds(Path(splits), names) if splits else _patient_folds(dataset, names)
        if str(fold) not in map(str, range(len(folds))):
            raise UserError(f"fold must be 0 to {len(folds) - 1} or 'all', not {fold!r}")
        sides = folds[int(fold)]
    training, validation = ([case for case in dataset.cases if case["name"] in {*side}][:limit] for side in sides)
    return Cases(fold, str(splits), (training, validation))


def k_fold(count: int, folds: int = NUM_FOLDS, seed: int = FOLD_SEED) -> list[tuple[list[int], list[int]]]:
    """Indices (training, validation) of each fold, the same as scikit-learn's KFold(folds, shuffle, seed)."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    parts = [set(part.tolist()) for part in np.array_split(order, folds)]
    return [([i for i in range(count) if i not in part], sorted(part)) for part in parts]


def read_splits(file: str | Path) -> list[dict[str, list[str]]]:
    """The folds of a split file, each {"train": [case names], "val": [case names]}, as nnU-Net's splits_final.json.

    Raises:
        UserError: the file is missing, broken or no such list.
    """
    try:
        splits = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise UserError(f"the split file {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(splits, list) or not splits or not all(_is_split(split) for split in splits):
        raise UserError(f'{file} must be a list of folds {{"train": [case names], "val": [case names]}}')
    return splits


def _patient_folds(dataset: DatasetDescription, names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Case names (training, validation) of each fold; a case without a patient is a patient of its own."""
    patient_of = {name: dataset.patients.get(name, name) for name in names}
    patients = sorted(set(patient_of.values()))
    if len(patients) < NUM_FOLDS:
        unit = "patient" if dataset.patients else "training case"
        raise UserError(
            f"{dataset.folder} has {len(patients)} {unit}(s), too few for {NUM_FOLDS} folds: give folds of your own "
            "with --splits FILE, which cross-validation takes too, or train on all cases with --fold all"
        )
    folds = []
    for _, held_out in k_fold(len(patients)):
        held = {patients[i] for i in held_out}
        sides = [[name for name in names if (patient_of[name] in held) == side] for side in (False, True)]
        folds.append((sides[0], sides[1]))
    return folds


def _own_folds(file: Path, names: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    known = {composed(name): name for name in names}
    folds = []
    for fold, split in enumerate(read_splits(file)):
        sides = [{composed(name) for name in split[side]} for side in ("train", "val")]
        if unknown := sorted((sides[0] | sides[1]) - known.keys()):
            raise UserError(f"{file}, fold {fold}: the data set has no case {first_few(unknown, 10)}")
        if both := sorted(sides[0] & sides[1]):
            raise UserError(f"{file}, fold {fold}: {first_few(both, 10)} in both train and val")
        folds.append(tuple([known[composed(name)] for name in split[side]] for side in ("train", "val")))
    return folds


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(
        isinstance(split.get(key), list) and all(isinstance(name, str) for name in split[key])
        for key in ("train", "val")
    )


def _check_files(dataset: DatasetDescription) -> None:
    missing = [path for case in dataset.cases for path in case_files(case) if not Path(path).is_file()]
    if missing:
        shown = first_few(missing, 10, "\n  ", counted=True)
        raise UserError(f"{dataset.file} names {len(missing)} file(s) that are missing:\n  {shown}")


def _check_against_config(dataset: DatasetDescription, in_channels: int, labels: Mapping[str, int]) -> None:
    hint = "use the task overlay made for this data set (configs/tasks/*.json)"
    channels = dataset.channel_names
    if channels and len(channels) != in_channels:
        raise UserError(
            f"{dataset.file} declares {len(channels)} channel(s), the config has in_channels={in_channels}: {hint}"
        )
    other_values = set(dataset.labels.values()) != set(labels.values())
    swapped = any(dataset.labels.get(name, value) != value for name, value in labels.items())
    if dataset.labels and (other_values or swapped):
        raise UserError(f"{dataset.file} declares the labels {dataset.labels}, the config has {dict(labels)}: {hint}")
