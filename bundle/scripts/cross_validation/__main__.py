"""Train every fold, predict each case with the network that has not seen it, and score them all together.

``python -m scripts.cross_validation --config_file "['configs/train.json','configs/tasks/NAME.json']"`` runs training
and evaluation for each fold, one after the other. What is finished is not done again, an interrupted training goes on
where it stopped, and with more ``--epochs`` than before every fold trains on. On a cluster, ``--fold K`` does one fold
(a job array's task), and the same command without it puts the finished folds together. Any id of the configs can be
set as for ``monai.bundle run``: ``--epochs 50``.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from ..common import BUNDLE_ROOT
from ..common.atomic_writing import flush_folder, replacing
from ..common.command_line import as_config_files, check_words
from ..common.errors import UserError, first_few, show_user_errors_plainly
from ..common.leftovers import remove_leftovers
from ..common.run_folder import ScoresFolder
from ..common.workers import STARTED_BY, end_children_with_this_process
from ..engines.finished import prediction_problem
from ..engines.provenance import PREDICTIONS, Run, predicted_cases, read_provenance, write_provenance
from ..images.files import case_name
from ..images.outputs import check_output_folder, open_folder, refuse_foreign
from ..metrics import format_summary, summarize, write_csv, write_json
from .folds import Fold, Settings

__all__ = ["gather", "main"]

MONAIS_WARNING = "ignore:parsing config_file:UserWarning"  # that configs are code, at each start; ours are trusted
EXIT_STATUS = """exit status:
  0  every fold asked for is finished and scored
  1  a training or evaluation failed, or something has to be put right; the message says what
  2  wrong usage of this command"""


def run_fold(settings: Settings, fold: Fold) -> None:
    """Train a fold, or go on with its training, and evaluate it, unless that is done.

    Raises:
        UserError: a run ended with an error, which it has printed; a fold cannot train on, or was trained otherwise.
    """
    settings.check(fold)
    if fold.trained:
        print(f"fold {fold.number}: trained already ({fold.folder})", flush=True)
    else:
        print(f"fold {fold.number}: {_kind_of_training(fold)} in {fold.folder}", flush=True)
        _run(settings.training(fold), fold)
    if fold.evaluated:
        print(f"fold {fold.number}: evaluated already", flush=True)
    else:
        reason = fold.outdated
        print(f"fold {fold.number}: evaluating{f' again, since {reason}' if reason else ''}", flush=True)
        _run(settings.evaluation(fold), fold)


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


def main(argv: Sequence[str] | None = None) -> int:
    show_user_errors_plainly()
    logging.getLogger("monai").setLevel(logging.ERROR)
    options, overrides = _arguments(argv)
    settings = Settings(as_config_files(options.config_file), overrides)
    count = settings.count()
    alone = options.fold is not None
    numbers = [options.fold] if alone else sorted(set(options.folds or range(count)))
    outside = [number for number in numbers if not 0 <= number < count]
    if outside:
        raise UserError(f"fold {outside[0]} does not exist: there are {count}, 0 to {count - 1}")
    folds = [settings.fold(number) for number in numbers]
    check_output_folder(settings.root, "--output_dir")
    for fold in folds:
        run_fold(settings, fold)
    if alone:
        print(f"fold {options.fold} is finished; the command without --fold puts the folds together")
    else:
        gather(folds, Path(settings.root) / "cross_validation")
    return 0


def _arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cross_validation",
        description=__doc__,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_file", required=True, help="the training config, or a list of it and overlays")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--folds", type=_number, nargs="+", metavar="K", help="which folds (default: all)")
    which.add_argument("--fold", type=_number, metavar="K", help="this fold alone, nothing put together")
    options, overrides = parser.parse_known_args(argv)
    check_words(["--config_file", options.config_file, *overrides])
    return options, overrides


def _number(word: str) -> int:
    if word == "all":
        raise argparse.ArgumentTypeError("'all' holds nothing out: for that run training itself")
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be the number of a fold, not {word}") from None


def _kind_of_training(fold: Fold) -> str:
    if fold.ended and not fold.resumable:  # training would start anew and replace its weights
        raise UserError(
            f"fold {fold.number} has fewer than {fold.epochs} epochs, and without {fold.run.checkpoint} it "
            "cannot train on: give --epochs as before, or another --output_dir"
        )
    if fold.ended:
        return f"training on to {fold.epochs} epochs"
    return "resuming" if fold.resumable else "training"


def _run(command: Sequence[str], fold: Fold) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BUNDLE_ROOT), os.getenv("PYTHONPATH")])),
        "PYTHONWARNINGS": ",".join(filter(None, [os.getenv("PYTHONWARNINGS"), MONAIS_WARNING])),
        STARTED_BY: str(os.getpid()),
    }
    # Any function has Python do, before the program starts, what end_children_with_this_process asks for at a fork: the
    # program itself does not get to it before its imports.
    early = (lambda: None) if os.name == "posix" else None
    if subprocess.run(command, env=environment, preexec_fn=early).returncode:
        raise UserError(
            f"fold {fold.number} did not finish (its message stands above); once that is put right, the same command "
            "goes on from here"
        )


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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run that it waits for is ended too
    end_children_with_this_process()
    sys.exit(main())
