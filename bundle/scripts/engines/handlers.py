"""Ignite handlers of training: gradient clipping, seeds, scores of a validation, and the log a person reads."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import set_determinism
from torch.utils.tensorboard import SummaryWriter

from ..common.atomic_writing import replacing
from ..common.command_line import from_words
from ..common.distributed import is_main_process, rank, world_size
from ..common.errors import UserError
from ..common.readable_json import without_nan
from ..common.run_folder import RunFolder
from ..data.loading import PatchLoader, RandomCases

__all__ = [
    "EMA_MOMENTUM",
    "EpochLog",
    "GradientClipping",
    "OutputAsList",
    "PrepareAhead",
    "SeedEachEpoch",
    "TensorBoard",
    "ValidationScores",
    "loss_rise",
    "seed_run",
]

JUMP = 3  # the loss_rise from which on the weights count as thrown out
EMA_MOMENTUM = 0.9  # of nnU-Net's moving average of the pseudo-Dice
logger = logging.getLogger("lightm_unet")


def loss_rise(loss: float, lowest: float) -> float:
    """How many times as high an epoch's loss is as the lowest before it, which counts as 0.1 or more."""
    return loss / max(lowest, 0.1)


class GradientClipping:
    """Clip the norm of all gradients together before each optimiser step, also under a gradient scaler."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class OutputAsList:
    """Hand on an iteration's output as handlers of MONAI expect it, its trackers above all: a list, here of one item,
    the batch. Taking the batch apart for them would cost time and tell them nothing. The first of the handlers.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.output = [engine.state.output]


class PrepareAhead:
    """While the GPU works on a batch, have a ``PatchLoader`` augment the next one there.

    After the backward pass was started: by then the GPU has work, and what follows in the step waits for it. The time
    that the loader's workers let it wait counts as that of getting a batch.
    """

    def attach(self, engine: Engine) -> None:
        if isinstance(engine.data_loader, PatchLoader) and engine.data_loader.on_gpu:
            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        engine.fire_event(Events.GET_BATCH_STARTED)
        engine.data_loader.fetch_next()
        engine.fire_event(Events.GET_BATCH_COMPLETED)
        engine.data_loader.prepare_next()


class SeedEachEpoch:
    """Seed every random number of an epoch from (seed, epoch, rank), so that a resumed run repeats none
    and goes on exactly as an uninterrupted one would. Those of the patches are told the epoch.

    Args:
        seed: the run's seed, or None to leave everything random.
    """

    @from_words
    def __init__(self, seed: int | None) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        epoch, sampler = engine.state.epoch, getattr(engine.data_loader, "sampler", None)
        if isinstance(sampler, RandomCases):
            sampler.epoch = epoch
        if self.seed is not None:
            set_determinism((self.seed + 1_000_003 * epoch * world_size() + rank()) % 2**32)


@from_words
def seed_run(seed: int | None) -> None:
    """Seed what comes before the first epoch, the network's initial weights above all."""
    set_determinism(seed)


class TensorBoard:
    """TensorBoard's writer, which makes its files when the first value comes: building a training writes nothing.

    Args:
        log_dir: its folder.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir

    @cached_property
    def _writer(self) -> SummaryWriter:
        return SummaryWriter(log_dir=self.log_dir)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks any object for
            raise AttributeError(name)
        return getattr(self._writer, name)


class ValidationScores:
    """Break a validation's metrics down by class and keep nnU-Net's EMA of the pseudo-Dice.

    Reads ``val_mean_dice`` (its per-case details) and ``pseudo_dice`` (one value per class, counted over all
    cases together) and writes into the evaluator's metrics ``dice_NAME`` for each class, ``pseudo_dice`` (mean)
    and ``ema_pseudo_dice``. The average lives in ``evaluator.state.ema_pseudo_dice``.

    Args:
        labels: name -> value of the foreground classes, in the order of the network's channels.
    """

    def __init__(self, labels: Mapping[str, int]) -> None:
        self.names = sorted(labels, key=lambda name: labels[name])

    def attach(self, engine: Engine) -> None:
        engine.state.ema_pseudo_dice = None
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        metrics = engine.state.metrics
        per_class = torch.as_tensor(engine.state.metric_details["val_mean_dice"]).nanmean(dim=0)
        for name, value in zip(self.names, per_class.tolist(), strict=True):
            metrics[f"dice_{name}"] = value
        pseudo_dice = float(torch.as_tensor(metrics["pseudo_dice"], dtype=torch.float32).nanmean())
        average = _moving_average(engine.state.ema_pseudo_dice, pseudo_dice)
        metrics["pseudo_dice"] = pseudo_dice
        metrics["ema_pseudo_dice"] = math.nan if average is None else average
        engine.state.ema_pseudo_dice = average


def _moving_average(previous: float | None, value: float) -> float | None:
    """nnU-Net's; an undefined value (no class held out and none predicted) leaves it as it was."""
    if math.isnan(value):
        return previous
    return value if previous is None else EMA_MOMENTUM * previous + (1 - EMA_MOMENTUM) * value


class EpochLog:
    """One line per epoch for a person (loss, learning rate, Dice per class by name, time), the same and more as a
    line of log.jsonl for programs, and where the files are at the end.

    Comes after the ValidationHandler, whose scores it reads, and before SaveCheckpoints: so a run that is killed
    between the two repeats an epoch, whose line is then replaced, and never lacks one.

    Of several processes the main one writes, and the loss is that of its own patches. Dice in the log leaves out a
    case without the class; evaluation gives it 0 where the class was predicted.

    A line of log.jsonl: {"epoch", "loss", "lr", "seconds" (with validation), "samples_per_second" (of training, all
    processes together), "data_seconds" (time that training waited for data)} and, for an epoch with a validation,
    {"dice": {name: value}, "pseudo_dice", "ema_pseudo_dice"}; null for a value that is not a number.

    Args:
        output_dir: the run's folder.
        evaluator: the engine that validates.
        labels: name -> value of the foreground classes.
    """

    def __init__(self, output_dir: str, evaluator: Engine, labels: Mapping[str, int]) -> None:
        self.folder = RunFolder(output_dir)
        self.evaluator = evaluator
        self.names = sorted(labels, key=lambda name: labels[name])

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_waiting)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._stop_waiting)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._log_summary)

    def _start_epoch(self, engine: Engine) -> None:
        self.losses: list[torch.Tensor] = []
        self.samples, self.waited = 0, 0.0
        self.start = self.trained = self.asked = time.perf_counter()
        self.learning_rate = engine.optimizer.param_groups[0]["lr"]

    def _start_waiting(self, engine: Engine) -> None:
        self.asked = time.perf_counter()

    def _stop_waiting(self, engine: Engine) -> None:
        self.waited += time.perf_counter() - self.asked

    def _end_iteration(self, engine: Engine) -> None:
        self.losses.append(engine.state.output[0]["loss"].detach())
        self.samples += len(engine.state.batch["image"]) * world_size()
        if engine.state.iteration % engine.state.epoch_length == 0:
            self.losses[-1].item()  # a GPU may be some iterations behind: the clock waits for it
        self.trained = time.perf_counter()

    def _end_epoch(self, engine: Engine) -> None:
        record: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "loss": float(torch.stack(self.losses).mean()),
            "lr": self.learning_rate,
        }
        if self.evaluator.state.epoch == engine.state.epoch:
            metrics = self.evaluator.state.metrics
            record["dice"] = {name: metrics[f"dice_{name}"] for name in self.names}
            record |= {name: metrics[name] for name in ("pseudo_dice", "ema_pseudo_dice")}
        record["seconds"] = time.perf_counter() - self.start
        record["samples_per_second"] = self.samples / (self.trained - self.start)
        record["data_seconds"] = self.waited
        if not is_main_process():
            return
        earlier = self._write(record)
        logger.info(_epoch_line(record, engine.state.max_epochs))
        _warn_of_a_jump(record["loss"], [line["loss"] for line in earlier if line["loss"] is not None])

    def _write(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Add a line to log.jsonl, in place of those of this epoch and later ones; returns the earlier ones."""
        path = self.folder.epochs
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        epochs = [_epoch_of(line, number, path) for number, line in enumerate(lines, 1)]
        earlier = [line for line in epochs if line["epoch"] < record["epoch"]]
        with replacing(path) as temporary:
            temporary.write_text(
                "".join(json.dumps(line) + "\n" for line in [*earlier, without_nan(record)]), encoding="utf-8"
            )
        return earlier

    def _log_summary(self, engine: Engine) -> None:
        if not is_main_process():
            return
        best = getattr(engine.state, "best_scores", None)
        lines = [f"finished {engine.state.epoch} epochs, {engine.state.iteration} iterations"]
        if best:
            dice = ", ".join(f"{name} {best['dice'][name]:.4f}" for name in self.names)
            lines.append(f"best EMA pseudo-Dice {best['ema_pseudo_dice']:.4f} in epoch {best['epoch']}: Dice {dice}")
            lines.append(f"best weights  {self.folder.best}")
        lines.append(f"last weights  {self.folder.final}")
        lines.append(f"curves        tensorboard --logdir {self.folder.tensorboard}")
        logger.info("\n".join(lines))


def _epoch_of(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record["epoch"], int) and isinstance(record["loss"], (int, float, NoneType)):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"line {number} of {path} is not that of an epoch: remove the line, or move the file away")


def _epoch_line(record: Mapping[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss {record['loss']:.4f}", f"lr {record['lr']:.3g}"]
    if "dice" in record:
        parts.append("Dice " + " ".join(f"{name} {dice:.4f}" for name, dice in record["dice"].items()))
        parts.append(f"pseudo-Dice {record['pseudo_dice']:.4f} EMA {record['ema_pseudo_dice']:.4f}")
    return " | ".join([*parts, f"{record['seconds']:.1f} s"])


def _warn_of_a_jump(loss: float, earlier: Sequence[float]) -> None:
    """``earlier``: the losses of all epochs before, those before a resume included."""
    lowest = min(earlier, default=math.inf)
    if not math.isfinite(loss):
        logger.warning("the loss is not a number: stop, and train anew with a lower --learning_rate or --amp false")
    elif loss_rise(loss, lowest) > JUMP:
        logger.warning(
            f"the loss jumped to {loss:.3g}, it was down to {lowest:.3g}: if it stays up, train anew with a lower "
            "--learning_rate"
        )
