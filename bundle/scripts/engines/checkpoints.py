"""What a run saves as it goes: the best and the last weights, and everything that it needs to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..common.atomic_writing import replacing
from ..common.distributed import is_main_process
from ..common.run_folder import RunFolder

__all__ = ["CHECKPOINT_KEYS", "SaveCheckpoints", "save_weights", "save_whole"]

CHECKPOINT_KEYS = {"network", "optimizer", "scaler", "epoch", "ema_pseudo_dice", "best_scores"}


class SaveCheckpoints:
    """Write model.pt whenever the EMA pseudo-Dice rises, checkpoint.pt after every epoch, model_final.pt last.

    Only the main process writes; each file is written whole and then renamed. checkpoint.pt comes before the model.pt
    of the same epoch, so that a model.pt alone is no interrupted run's and never replaced; resuming writes the one that
    is missing (see restore_run). Comes after the ValidationHandler among the trainer's handlers, so that an epoch's
    scores are there when it is saved.

    Args:
        output_dir: the run's folder.
        network, optimizer: what is saved.
        evaluator: the engine whose metrics hold ema_pseudo_dice and dice_NAME.
        labels: name -> value of the foreground classes.
    """

    def __init__(
        self,
        output_dir: str,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        labels: Mapping[str, int],
    ) -> None:
        self.folder = RunFolder(output_dir)
        self.network = network
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.labels = labels

    def attach(self, engine: Engine) -> None:
        if not hasattr(engine.state, "best_scores"):
            engine.state.best_scores = None
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end_run)

    def _end_epoch(self, trainer: Engine) -> None:
        best = self.evaluator.state.epoch == trainer.state.epoch and self._is_best(trainer)
        save_whole(self.folder.checkpoint, self._everything(trainer))
        if best:
            save_weights(self.folder.best, self.network.state_dict())

    def _is_best(self, trainer: Engine) -> bool:
        """Whether the epoch is the best so far; if so, its scores are kept."""
        metrics, best = self.evaluator.state.metrics, trainer.state.best_scores
        score = metrics["ema_pseudo_dice"]
        # As long as no class was there to be scored (NaN), the latest epoch counts as the best.
        if best is not None and not (score > best["ema_pseudo_dice"] or math.isnan(best["ema_pseudo_dice"])):
            return False
        trainer.state.best_scores = {
            "epoch": trainer.state.epoch,
            "ema_pseudo_dice": score,
            "dice": {name: metrics[f"dice_{name}"] for name in self.labels},
        }
        return True

    def _everything(self, trainer: Engine) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
            "epoch": trainer.state.epoch,
            "ema_pseudo_dice": self.evaluator.state.ema_pseudo_dice,
            "best_scores": trainer.state.best_scores,
        }

    def _end_run(self, trainer: Engine) -> None:
        save_weights(self.folder.final, self.network.state_dict())


def save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a file of weights, on the CPU: they load where there is no GPU."""
    save_whole(path, {name: value.cpu() for name, value in state.items()})


def save_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file from the main process; no half-written one is ever seen."""
    if is_main_process():
        with replacing(path) as temporary:
            torch.save(content, temporary)
