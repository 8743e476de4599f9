"""What training, evaluation and inference do, in the order of events; the configs build what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import Evaluator
from monai.handlers import CheckpointLoader

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

__all__ = ["OpenFirst", "Opening", "evaluate", "infer", "train"]


class Opening:
    """What a training does before its first epoch: open its folder, prepare its cases, take the weights it starts from.

    ``train`` does it first of all; a trainer that another program runs on its own, as a federated client does round by
    round, when it starts for the first time (see OpenFirst).

    Args:
        evaluator: validates.
        network: what is trained, without wrappers.
        lr_scheduler: of the trainer's optimiser.
        training, validation: the same training cases in every process; each its own share of the held-out ones.
        preparation: of the cases.
        settings: what else a resumed run must share with the old one.
        output_dir, cache_dir: the run's folder, and where prepared cases are kept.
        resume: whether to go on with the run in ``output_dir``.
        pretrained: weights to start from, or None.
        num_workers: processes that prepare cases.
    """

    @from_words
    def __init__(
        self,
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
        self.evaluator, self.network, self.lr_scheduler = evaluator, network, lr_scheduler
        self.training, self.validation, self.preparation = training, validation, preparation
        self.settings, self.output_dir, self.cache_dir = settings, output_dir, cache_dir
        self.resume, self.pretrained, self.num_workers = resume, pretrained, num_workers
        self.is_open = False

    def prepare(self, trainer: Engine) -> None:
        """All of it.

        Raises:
            UserError: no case is held out; see also each step.
        """
        if not len(self.validation):
            raise UserError("no case is held out to choose the best weights by: hand in some to validate with")
        facts = {**self.settings, **self.preparation.facts()}
        open_run(self.output_dir, self.resume, facts, self.cache_dir, self.training.data)
        start_from(self.network, self.pretrained, self.resume)
        held_out = gather_objects(list(self.validation.data))
        earlier = self.pretrained or _loads_first(trainer)
        write_training_cases(self.output_dir, self.settings["fold"], self.training.data, held_out, earlier, self.resume)
        prepare_cases(self.training, self.validation, self.preparation.spacing, self.num_workers)
        restore_run(trainer, self.evaluator, self.network, self.lr_scheduler, self.output_dir, self.resume)
        self.is_open = True


class OpenFirst:
    """Among the trainer's handlers: no training without its Opening, whoever runs the trainer."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if not self.opening.is_open:
            self.opening.prepare(engine)


def train(trainer: Engine, opening: Opening) -> None:
    """Train a fold, from the start or from where it stopped.

    Args:
        trainer: what trains.
        opening: of its run.

    Raises:
        UserError: see Opening.
    """
    try:
        opening.prepare(trainer)
        run_to_end(trainer)
    finally:
        opening.is_open = False


def _loads_first(trainer: Engine) -> str | None:
    """The weights that a handler of another program puts in when training starts, as MONAI Label's does."""
    handlers = [handler for handler, *_ in trainer._event_handlers[Events.STARTED]]
    return next((handler.load_path for handler in handlers if isinstance(handler, CheckpointLoader)), None)


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
