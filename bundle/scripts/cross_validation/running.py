"""Runs of monai.bundle in processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ..common import BUNDLE_ROOT
from ..common.errors import UserError
from ..common.workers import STARTED_BY
from .folds import Fold, Settings

__all__ = ["evaluate_fold", "run_fold", "run_program"]

MONAIS_WARNING = "ignore:parsing config_file:UserWarning"  # that configs are code, at each start; ours are trusted


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
        run_program(settings.training(fold), f"fold {fold.number}")
    evaluate_fold(settings, fold)


def evaluate_fold(settings: Settings, fold: Fold) -> None:
    """Predict and score a fold's held-out cases, unless that is done with these weights and settings.

    Raises:
        UserError: the evaluation ended with an error, which it has printed.
    """
    if fold.evaluated:
        print(f"fold {fold.number}: evaluated already", flush=True)
        return
    reason = fold.outdated
    print(f"fold {fold.number}: evaluating{f' again, since {reason}' if reason else ''}", flush=True)
    run_program(settings.evaluation(fold), f"fold {fold.number}")


def run_program(command: Sequence[str], what: str) -> None:
    """Run a program that ends when this process does, killed too (on Linux), and wait for it.

    Args:
        what: it does, for the message.

    Raises:
        UserError: it ended with an error, which it has printed.
    """
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
            f"{what} did not finish (its message stands above); once that is put right, the same command "
            "goes on from here"
        )


def _kind_of_training(fold: Fold) -> str:
    if fold.ended and not fold.resumable:  # training would start anew and replace its weights
        raise UserError(
            f"fold {fold.number} has fewer than {fold.epochs} epochs, and without {fold.run.checkpoint} it "
            "cannot train on: give --epochs as before, or another --output_dir"
        )
    if fold.ended:
        return f"training on to {fold.epochs} epochs"
    return "resuming" if fold.resumable else "training"
