"""What training, evaluation and inference do, in the order of events; the configs build what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import Evaluator

from ..common.command_line import from_words, or_none
from ..common.distributed import gather_objects
from ..common.errors import UserError
from ..data.preparation import prepare_cases
from ..data.prepared import PreparedDataset
from ..data.transforms import Preparation
from .clean_start import run_clean
from .evaluation import check_evaluation_dir
from .opening import open_run, run_to_end
from .prediction import predict
from .pretrained import start_from
from .provenance import record_predictions, write_training_cases
from .resuming import restore_run

__all__ = ["evaluate", "infer", "train"]


@from_words
def train(
    trainer: Engine,
    evaluator: Engine,
    network: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    training: PreparedDataset,
    validation: PreparedDataset,
    preparation: Preparation,
    settings: Mapping[str, Any],
    output_dir: str,
    cache_dir: str,
    resume: bool = False,
    pretrained: str | None = None,
    num_workers: int = 0,
) -> None:
    """Train a fold, from the start or from where it stopped.

    Args:
        trainer, evaluator: the evaluator validates.
        network: what is trained, without wrappers.
        lr_scheduler: of the trainer's optimiser.
        training, validation: the same training cases in every process; each its own share of the held-out ones.
        preparation: of the cases.
        settings: what else a resumed run must share with the old one.
        output_dir, cache_dir: the run's folder, and where prepared cases are kept.
        resume: whether to go on with the run in ``output_dir``.
        pretrained: weights to start from, or None.
        num_workers: processes that prepare cases.

    Raises:
        UserError: see each step.
    """
    open_run(output_dir, resume, {**settings, **preparation.facts()}, cache_dir, training.data)
    start_from(network, pretrained, resume)
    held_out = gather_objects(list(validation.data))
    write_training_cases(output_dir, settings["fold"], training.data, held_out, pretrained, resume)
    prepare_cases(training, validation, preparation.spacing, num_workers)
    restore_run(trainer, evaluator, network, lr_scheduler, output_dir, resume)
    run_to_end(trainer)


def evaluate(evaluator: Evaluator, checkpoint: str | Sequence[str], evaluation_dir: str, predictions_dir: str) -> None:
    """Predict and score held-out cases with a network that has its weights.

    Args:
        evaluator: its data loader's cases are scored by its handlers.
        checkpoint: the weights' file, or several, for the record of who predicted.
        evaluation_dir, predictions_dir: where scores and predictions go.

    Raises:
        UserError: see each step.
    """
    cases = evaluator.data_loader.dataset.data
    check_evaluation_dir(evaluation_dir, cases, predictions_dir)
    record_predictions(predictions_dir, checkpoint, cases)
    run_clean(evaluator)


def infer(
    evaluator: Evaluator,
    dataloader: DataLoader,
    checkpoint: str | Sequence[str],
    output_dir: str,
    input_dir: str | None = None,
) -> None:
    """Predict a folder of images with a network that has its weights.

    Args:
        evaluator: predicts and saves.
        dataloader: of a CaseDataset, one case at a time.
        checkpoint: the weights' file, or several, for the record of who predicted.
        output_dir: where the evaluator's postprocessing saves.
        input_dir: where the cases are from, if somebody said so.

    Raises:
        UserError: nobody gave anything to predict; see also each step.
    """
    if or_none(input_dir) is None and not dataloader.dataset.data:
        raise UserError("give the image or the folder of images to predict with --input_dir")
    record_predictions(output_dir, checkpoint, dataloader.dataset.data)
    predict(evaluator, dataloader, output_dir)
