"""Bringing the held-out cases of several folds together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_writing import flush_folder, replacing
from ..common.errors import UserError, first_few
from ..common.leftovers import remove_leftovers
from ..common.run_folder import ScoresFolder
from ..engines.finished import prediction_problem
from ..engines.provenance import PREDICTIONS, Run, predicted_cases, read_provenance, write_provenance
from ..images.files import case_name
from ..images.outputs import check_output_folder, open_folder, refuse_foreign
from ..metrics import format_summary, summarize, write_csv, write_json
from .folds import Fold

__all__ = ["gather"]


def gather(folds: Sequence[Fold], output_dir: Path) -> None:
    """Bring the held-out cases of all folds together: predictions/, metrics.csv and metrics.json in output_dir.

    predictions/ is made anew, so that it holds the cases of these folds and no others.

    Raises:
        UserError: a fold is not finished; a case was held out twice; a prediction is damaged; nothing may be written
            there (images/outputs.py); or files would be lost that no cross-validation wrote.
    """
    missing = [str(fold.number) for fold in folds if not fold.evaluated]
    if missing:
        raise UserError(f"fold(s) {', '.join(missing)} are not finished: run them with --fold, then this command again")
    rows = []
    for fold in folds:
        rows += [{**_with_nan(row), "fold": fold.number} for row in fold.scores()]
    _check_each_case_once(rows)
    _check_predictions(folds)
    target = ScoresFolder(check_output_folder(output_dir, "--output_dir"))
    _refuse_to_lose(target)
    for folder in (target.path, target.predictions):
        open_folder(folder, "--output_dir")
    _start_anew(target.predictions, folds)
    for fold in folds:
        _copy_predictions(fold.evaluation.predictions, target.predictions, {row["case"] for row in fold.scores()})
    rows.sort(key=lambda row: row["case"])  # its classes stay in the task's order
    summary, cases = summarize(rows), len({row["case"] for row in rows})
    write_csv(target.table, rows)
    numbers = [fold.number for fold in folds]
    write_json(target.metrics, {"folds": numbers, "cases": cases, "classes": summary, "per_case": rows})
    print(f"\nfolds {', '.join(map(str, numbers))} together: {format_summary(cases, summary)}")
    print(f"written: {target.table}, {target.metrics.name}, {target.predictions.name}/")


def _refuse_to_lose(target: ScoresFolder) -> None:
    """Refuse to take away what is no earlier gathering's: it noted in predictions.json what it was about to copy."""
    predictions = target.predictions
    remove_leftovers(predictions)
    ours = {PREDICTIONS, *predicted_cases(predictions)}
    names = sorted(os.listdir(predictions)) if predictions.is_dir() else []
    others = [name for name in names if not ours & {name, case_name(name)} or (predictions / name).is_dir()]
    refuse_foreign([predictions / name for name in others], "--output_dir")
    if not predictions.is_dir():  # as little as there is before a first gathering
        refuse_foreign([target.metrics, target.table], "--output_dir")


def _start_anew(predictions: Path, folds: Sequence[Fold]) -> None:
    """Take an earlier gathering's predictions away, and note what will be copied before it is: killed in between, the
    next one knows the files for its own."""
    for path in [path for path in predictions.iterdir() if path.name != PREDICTIONS]:
        path.unlink()
    flush_folder(predictions)
    (predictions / PREDICTIONS).unlink(missing_ok=True)
    for fold in folds:
        unknown = Run(str(fold.run.best), fold.number, None, sorted({row["case"] for row in fold.scores()}))
        write_provenance(predictions, *(read_provenance(fold.evaluation.predictions) or [unknown]))


def _copy_predictions(source: Path, target: Path, cases: Container[str]) -> None:
    """Of an earlier evaluation, of other cases, predictions may be left."""
    for file in sorted(source.iterdir()):
        if case_name(file) in cases:
            with replacing(target / file.name) as temporary:
                shutil.copyfile(file, temporary)


def _check_predictions(folds: Sequence[Fold]) -> None:
    """Before the predictions that were gathered earlier go: a damaged file is not handed on."""
    for fold in folds:
        images, files = {row["case"]: row.get("file", "") for row in fold.scores()}, fold.predictions()
        for case, image in images.items():
            if problem := prediction_problem(files[case], image):
                raise UserError(
                    f"{files[case]} {problem}: remove it, and the same command evaluates fold {fold.number} again"
                )


def _check_each_case_once(rows: Sequence[dict[str, Any]]) -> None:
    folds: dict[str, set[int]] = {}
    for row in rows:
        folds.setdefault(row["case"], set()).add(row["fold"])
    twice = sorted(case for case, numbers in folds.items() if len(numbers) > 1)
    if twice:
        raise UserError(
            f"{len(twice)} case(s) are held out by more than one fold ({first_few(twice)}): their scores cannot be "
            "put together; choose --folds that share no held-out case"
        )


def _with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """metrics.json writes an undefined score as null."""
    return {key: float("nan") if value is None else value for key, value in row.items()}
