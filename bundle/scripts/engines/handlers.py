"""Ignite handlers of training: gradient clipping, seeds, scores of a validation, and the log a person reads."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, set_rnd
from monai.engines import IterationEvents
from monai.utils import set_determinism

from ..command_line import or_none
from ..distributed import rank, world_size

__all__ = ["EMA_MOMENTUM", "EpochLog", "GradientClipping", "SeedEachEpoch", "ValidationScores", "seed_run"]

EMA_MOMENTUM = 0.9  # of nnU-Net's moving average of the pseudo-Dice
logger = logging.getLogger("lightm_unet")


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


class SeedEachEpoch:
    """Seed every random number of an epoch from (seed, epoch, rank), so that a resumed run repeats none
    and goes on exactly as an uninterrupted one would.

    Args:
        seed: the run's seed, or None (typed: null) to leave everything random.
    """

    def __init__(self, seed: int | str | None) -> None:
        self.seed = or_none(seed)

    def attach(self, engine: Engine) -> None:
        if self.seed is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed + 1_000_003 * engine.state.epoch * world_size() + rank()) % 2**32
        set_determinism(seed)
        loader = engine.data_loader
        if isinstance(loader, DataLoader) and loader.num_workers == 0:
            set_rnd(loader.dataset.transform, seed)  # worker processes seed themselves from torch's generator


def seed_run(seed: int | str | None) -> None:
    """Seed what comes before the first epoch, the network's initial weights above all."""
    set_determinism(or_none(seed))


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
        previous = engine.state.ema_pseudo_dice
        ema = pseudo_dice if previous is None else EMA_MOMENTUM * previous + (1 - EMA_MOMENTUM) * pseudo_dice
        metrics["pseudo_dice"], metrics["ema_pseudo_dice"] = pseudo_dice, ema
        engine.state.ema_pseudo_dice = ema


class EpochLog:
    """One line per epoch (loss, learning rate, Dice per class by name, time), and where the files are at the end.

    Args:
        output_dir: the run's folder, named in the closing summary.
        evaluator: the engine that validates.
        labels: name -> value of the foreground classes.
    """

    def __init__(self, output_dir: str, evaluator: Engine, labels: Mapping[str, int]) -> None:
        self.output_dir = Path(output_dir)
        self.evaluator = evaluator
        self.names = sorted(labels, key=lambda name: labels[name])
        self.losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log_epoch)
        engine.add_event_handler(Events.COMPLETED, self._log_summary)

    def _start_epoch(self, engine: Engine) -> None:
        self.losses, self.start = [], time.perf_counter()
        self.learning_rate = engine.optimizer.param_groups[0]["lr"]

    def _add_loss(self, engine: Engine) -> None:
        self.losses.append(engine.state.output["loss"].detach())

    def _log_epoch(self, engine: Engine) -> None:
        parts = [f"epoch {engine.state.epoch}/{engine.state.max_epochs}"]
        parts += [f"loss {torch.stack(self.losses).mean():.4f}", f"lr {self.learning_rate:.3g}"]
        if self.evaluator.state.epoch == engine.state.epoch:
            parts.append(self._dice())
        parts.append(f"{time.perf_counter() - self.start:.1f} s")
        logger.info(" | ".join(parts))

    def _dice(self) -> str:
        metrics = self.evaluator.state.metrics
        dice = " ".join(f"{name} {metrics[f'dice_{name}']:.4f}" for name in self.names)
        return f"Dice {dice} | pseudo-Dice {metrics['pseudo_dice']:.4f} EMA {metrics['ema_pseudo_dice']:.4f}"

    def _log_summary(self, engine: Engine) -> None:
        best = getattr(engine.state, "best_scores", None)
        lines = [f"finished {engine.state.epoch} epochs, {engine.state.iteration} iterations"]
        if best:
            dice = ", ".join(f"{name} {best['dice'][name]:.4f}" for name in self.names)
            lines.append(f"best EMA pseudo-Dice {best['ema_pseudo_dice']:.4f} in epoch {best['epoch']}: Dice {dice}")
            lines.append(f"best weights  {self.output_dir / 'model.pt'}")
        lines.append(f"last weights  {self.output_dir / 'model_final.pt'}")
        lines.append(f"curves        tensorboard --logdir {self.output_dir / 'tensorboard'}")
        logger.info("\n".join(lines))
