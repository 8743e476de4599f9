"""Which cases a model was trained on, kept with the model and with its predictions.

A rule that is learned from predictions (python -m scripts.postprocessing determine) must come from cases that their
model did not see. Two small files carry what is needed to know:

cases.json, beside a checkpoint, written by training:
    {"fold": 0, "training": [case names] | null (unknown), "validation": [case names]}

predictions.json, in a folder of predictions, written by inference, evaluation and cross-validation:
    {"runs": [{"checkpoint": path or [paths of an ensemble], "fold": 0 | "all" | null,
               "trained_on": [case names] | null (unknown), "predicted": [case names]}, …]}
Each run is one model (or ensemble) and the cases of this folder that it predicted; a folder gathered from several
folds holds several.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from ..common.distributed import is_main_process
from ..common.errors import UserError, first_few
from ..common.readable_json import write_json
from ..common.run_folder import PREDICTIONS, RunFolder
from ..images.files import case_name, first_file
from .case_loading import is_unicode
from .ensemble import checkpoint_paths

__all__ = [
    "PREDICTIONS",
    "Run",
    "check_held_out",
    "forget_predictions",
    "predicted_cases",
    "read_held_out",
    "read_provenance",
    "read_training_cases",
    "record_predictions",
    "write_provenance",
    "write_training_cases",
]

logger = logging.getLogger("lightm_unet")

Case = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One model's share of a folder of predictions; ``trained_on`` is None where it is not known."""

    checkpoint: str | list[str]
    fold: int | str | None
    trained_on: list[str] | None
    predicted: list[str]


def write_training_cases(
    output_dir: str | Path,
    fold: int | str,
    training: Iterable[Case],
    validation: Iterable[Case],
    pretrained: str | Path | None = None,
    resume: bool = False,
) -> None:
    """Write cases.json into a run's folder, from the main process.

    Args:
        training, validation: cases, [{"name", …}, …].
        pretrained: weights that training starts from; what they have seen, the new ones have seen as well.
        resume: whether the run only goes on; what it had seen before counts too.

    Raises:
        UserError: a resumed run held out other cases before.
    """
    own, held_out = RunFolder(output_dir).cases, sorted(map(_name, validation))
    resumed = resume and own.is_file()
    if resumed:
        _check_held_out_before(own, held_out)
    if is_main_process():
        earlier = [read_training_cases(str(file))[1] for file in (pretrained, own if resumed else None) if file]
        seen = None if None in earlier else sorted({*map(_name, training)}.union(*earlier))
        write_json(own, {"fold": fold, "training": seen, "validation": held_out})


def read_training_cases(checkpoint: str | Path | Sequence[str | Path]) -> tuple[int | str | None, list[str] | None]:
    """Fold and training cases of a checkpoint, from the cases.json beside it; of an ensemble, all of them together.

    Returns:
        (fold, case names); None for what is not known, the fold of an ensemble included.

    Raises:
        UserError: a cases.json is broken.
    """
    paths = checkpoint_paths(checkpoint)
    files = [RunFolder.of(path).cases for path in paths]
    if not all(file.is_file() for file in files):
        return None, None
    contents = [_read(file, {"training": (list, NoneType)}) for file in files]
    lists = [content["training"] for content in contents]
    names = None if None in lists else sorted(set().union(*lists))
    return (contents[0].get("fold") if len(contents) == 1 else None), names


def read_held_out(folder: str | Path) -> set[str] | None:
    """The cases that the training in a folder held out, None where it left no word of them.

    Raises:
        UserError: its cases.json is broken.
    """
    file = RunFolder(folder).cases
    return set(_read(file, {"validation": list})["validation"]) if file.is_file() else None


def record_predictions(output_dir: str | Path, checkpoint: str | Sequence[str], cases: Iterable[Case]) -> None:
    """Write predictions.json for cases that are about to be predicted with a checkpoint (or several).

    Warns where it was trained on some of them.

    Call it before predicting: a case that then fails has no file, and its name does no harm. Of several processes
    each hands in its own cases.

    Args:
        output_dir: the folder of predictions.
        cases: [{"name", "image": path or paths, …}, …]; the name may be left to the file.
    """
    names = list(filter(is_unicode, map(_name, cases)))  # others are not predicted, and JSON cannot hold them
    fold, trained_on = read_training_cases(checkpoint)
    seen = sorted({*names} & {*(trained_on or ())})
    if seen:
        logger.warning(f"{checkpoint} was trained on {len(seen)} of these {len(names)} cases ({first_few(seen)})")
    paths = checkpoint_paths(checkpoint)
    write_provenance(output_dir, Run(paths if len(paths) > 1 else paths[0], fold, trained_on, names))


def write_provenance(folder: str | Path, *runs: Run) -> None:
    """Add runs to a folder's predictions.json; a case that is predicted anew belongs to its latest run.

    Raises:
        UserError: the file that is there is broken.
    """
    anew = {name for run in runs for name in run.predicted}
    with _locked(Path(folder)):
        earlier = read_provenance(folder) or []
        kept = [replace(run, predicted=[name for name in run.predicted if name not in anew]) for run in earlier]
        written = [asdict(run) for run in (*kept, *runs) if run.predicted]
        write_json(Path(folder) / PREDICTIONS, {"runs": written})


def forget_predictions(folder: str | Path, names: Iterable[str]) -> None:
    """Take cases out of a folder's predictions.json: nobody can tell any more which model made what is there."""
    if names := set(names):
        with _locked(Path(folder)):
            runs = [replace(run, predicted=sorted({*run.predicted} - names)) for run in read_provenance(folder) or []]
            write_json(Path(folder) / PREDICTIONS, {"runs": [asdict(run) for run in runs if run.predicted]})


def read_provenance(folder: str | Path) -> list[Run] | None:
    """The runs of a folder's predictions.json, None without that file.

    Raises:
        UserError: the file is broken.
    """
    path = Path(folder) / PREDICTIONS
    if not path.is_file():
        return None
    try:
        runs = [Run(**run) for run in _read(path, {"runs": list})["runs"]]
        if not all(_are_names(run.trained_on) and _are_names(run.predicted or []) for run in runs):
            raise TypeError("trained_on and predicted must be names of cases")
        return runs
    except TypeError as error:
        raise UserError(f"{path} is not a record of predictions: {error}; remove it or predict again") from error


def predicted_cases(folder: str | Path) -> set[str]:
    """Names of the cases whose predictions in a folder were written by this bundle, as its predictions.json says.

    Raises:
        UserError: the file is broken.
    """
    return {name for run in read_provenance(folder) or [] for name in run.predicted}


def check_held_out(
    folder: str | Path, names: Iterable[str], held_out: bool = False, trained_on: Iterable[str] | None = None
) -> None:
    """Refuse predictions of cases that their model was trained on, or may have been.

    Args:
        folder: the predictions.
        names: their cases.
        held_out: the user says that none was trained on, which settles what predictions.json does not know.
        trained_on: the user says what was trained on, likewise.

    Raises:
        UserError: lists the cases that were trained on; or nothing is known and nothing is said.
    """
    names = sorted(names)
    stated = None if trained_on is None else set(trained_on)
    by_case = {name: run for run in read_provenance(folder) or [] for name in run.predicted}
    known = {name: by_case[name].trained_on for name in names if name in by_case}
    seen = [name for name in names if name in (known.get(name) or ()) or name in (stated or ())]
    if seen:
        raise UserError(
            f"the model was trained on {len(seen)} of the {len(names)} cases in {folder}, whose predictions say "
            f"nothing about new images: {', '.join(seen)}. Predict held-out cases (cross-validation does)"
        )
    unknown = [name for name in names if known.get(name) is None]
    if unknown and not held_out and stated is None:
        raise UserError(
            f"nothing says which cases the model behind {folder} was trained on (its {PREDICTIONS} does not know for "
            f"{len(unknown)} of {len(names)} cases). If it has seen none of them, say so with --held_out, or name the "
            "cases that it was trained on with --trained_on FILE"
        )


def _check_held_out_before(file: Path, held_out: list[str]) -> None:
    before = _read(file, {"training": (list, NoneType), "validation": list})["validation"]
    if sorted(before) != held_out:
        differing = sorted({*before} ^ {*held_out})
        raise UserError(
            f"the run in {file.parent} held out other cases ({first_few(differing)}): resume it with the data set, "
            "--splits and --limit_cases that it was started with"
        )


def _name(case: Case) -> str:
    return case.get("name") or case_name(first_file(case["image"]))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep the other processes that predict into a folder away, where the system has file locks (not on Windows)."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which also unlocks


def _read(path: Path, keys: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(
        key in content and isinstance(content[key], kind) for key, kind in keys.items()
    ):
        raise UserError(f"{path} lacks the list(s) {', '.join(keys)}: it is not what its name says")
    if not all(_are_names(content[key]) for key in keys if key != "runs"):
        raise UserError(f"{path} holds something else than names of cases in {', '.join(keys)}: mend or remove it")
    return content


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
