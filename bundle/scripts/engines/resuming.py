"""Set a training to where an interrupted one stopped, from its checkpoint.pt."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..common.errors import UserError
from ..common.run_folder import RunFolder
from .checkpoints import CHECKPOINT_KEYS, save_weights
from .clean_start import start_clean
from .weights import put_into, read_sound_file

__all__ = ["restore_run"]

logger = logging.getLogger("lightm_unet")


def restore_run(
    trainer: Engine,
    evaluator: Engine,
    network: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    output_dir: str,
    resume: bool,
) -> None:
    """With ``resume``, set everything to where the run in ``output_dir`` stopped.

    The optimiser's moments, the epoch, the iteration, the best score and its moving average come from
    checkpoint.pt. Learning rate and number of epochs come from the config, so that both can be changed:
    the schedule is what it would have been at this epoch. Random numbers need nothing, they are a function of
    seed and epoch. model.pt is written again if the run was stopped between its checkpoint.pt and it.

    Raises:
        UserError: the run is complete, or its checkpoint does not fit. A run that was stopped between its last
            checkpoint.pt and model_final.pt is not complete: it only writes the latter.
    """
    start_clean(trainer, evaluator)  # whatever came of an earlier run in this process
    if resume:
        _restore(RunFolder(output_dir), trainer, evaluator, network, lr_scheduler)


def _restore(
    folder: RunFolder,
    trainer: Engine,
    evaluator: Engine,
    network: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    path = folder.checkpoint
    remedy = f"the run in {folder.path} cannot go on from it: start another in another --output_dir"
    saved = read_sound_file(path, remedy)
    _check_checkpoint(saved, path)
    put_into(network, saved["network"], path)
    epoch = saved["epoch"]
    if epoch >= trainer.state.max_epochs and folder.final.is_file():
        raise UserError(f"the run in {folder.path} has done all its {epoch} epochs: give more with --epochs")
    try:
        _restore_optimizer(trainer.optimizer, lr_scheduler, saved["optimizer"], epoch)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # parameter groups of version 0.4 were others
        raise UserError(
            f"the run in {folder.path} cannot go on: its optimiser is not this config's, as after an update of the "
            f"bundle or of the config; finish it with those, or start another run with --pretrained {path}"
        ) from error
    evaluator.state.ema_pseudo_dice = saved["ema_pseudo_dice"]
    if saved["best_scores"] and saved["best_scores"]["epoch"] == epoch:
        save_weights(folder.best, saved["network"])

    def at_start(engine: Engine) -> None:  # only here has the trainer its scaler, and not yet its first epoch
        engine.state.epoch = epoch
        engine.state.iteration = epoch * engine.state.epoch_length
        engine.state.best_scores = saved["best_scores"]
        if engine.scaler is not None and saved["scaler"]:
            engine.scaler.load_state_dict(saved["scaler"])
        logger.info(f"resuming after epoch {epoch} of {engine.state.max_epochs}")

    trainer.add_event_handler(Events.STARTED, at_start)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    saved: Mapping[str, Any],
    epoch: int,
) -> None:
    """Take the saved moments but the config's hyperparameters, and wind its schedule on to ``epoch``."""
    configured = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [{**group, **wanted} for group, wanted in zip(saved["param_groups"], configured, strict=True)]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a schedule that runs ahead of the optimiser
        for _ in range(epoch):
            lr_scheduler.step()


def _check_checkpoint(saved: Any, path: Path) -> None:
    """Refuse anything that SaveCheckpoints would not have written, before the run that is there changes."""
    advice = "start another run in another --output_dir"
    if not isinstance(saved, Mapping) or CHECKPOINT_KEYS - saved.keys():
        raise UserError(f"{path} is not the checkpoint of a run: {advice}")
    best = saved["best_scores"]
    holds = {
        "network": isinstance(saved["network"], Mapping),
        "optimizer": isinstance(saved["optimizer"], Mapping),
        "scaler": saved["scaler"] is None or isinstance(saved["scaler"], Mapping),
        "epoch": _is_epoch(saved["epoch"]),
        "ema_pseudo_dice": saved["ema_pseudo_dice"] is None or _is_score(saved["ema_pseudo_dice"]),
        "best_scores": best is None or _are_scores(best),
    }
    if wrong := [key for key, sound in holds.items() if not sound]:
        raise UserError(f"{path} is not the checkpoint of a run, its {', '.join(wrong)} cannot be used: {advice}")


def _is_epoch(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_score(value: Any) -> bool:
    """A Dice, or NaN where no class was there to be scored."""
    return isinstance(value, float) and (0 <= value < math.inf or math.isnan(value))


def _are_scores(best: Any) -> bool:
    if not isinstance(best, Mapping) or not {"epoch", "ema_pseudo_dice", "dice"} <= best.keys():
        return False
    dice = best["dice"]
    return (
        _is_epoch(best["epoch"])
        and _is_score(best["ema_pseudo_dice"])
        and isinstance(dice, Mapping)
        and all(map(_is_score, dice.values()))
    )
