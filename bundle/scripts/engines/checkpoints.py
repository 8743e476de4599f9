"""Checkpoints of a run: the best and the last weights, and everything a run needs to go on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..command_line import as_flag, as_typed, differing
from ..data.files import replacing
from ..distributed import is_main_process
from ..errors import UserError, in_one_line
from ..networks.weight_files import UnsoundWeightsError, read_weight_file
from .clean_start import start_clean

__all__ = [
    "SaveCheckpoints",
    "check_preparation",
    "check_scan_order",
    "load_weights",
    "open_run",
    "read_settings",
    "read_weights",
    "restore_run",
    "run_to_end",
    "weights_digest",
]

CHECKPOINT = "checkpoint.pt"
FINAL = "model_final.pt"
SETTINGS = "settings.json"
logger = logging.getLogger("lightm_unet")


class SaveCheckpoints:
    """Write model.pt whenever the EMA pseudo-Dice rises, checkpoint.pt after every epoch, model_final.pt last.

    Only the main process writes; each file is written whole and then renamed. Comes after the
    ValidationHandler among the trainer's handlers, so that an epoch's scores are there when it is saved.

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
        self.output_dir = Path(output_dir)
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
        if self.evaluator.state.epoch == trainer.state.epoch:
            self._keep_best(trainer)
        self._write(CHECKPOINT, self._everything(trainer))

    def _keep_best(self, trainer: Engine) -> None:
        metrics, best = self.evaluator.state.metrics, trainer.state.best_scores
        score = metrics["ema_pseudo_dice"]
        # As long as no class was there to be scored (NaN), the latest epoch counts as the best.
        if best is not None and not (score > best["ema_pseudo_dice"] or math.isnan(best["ema_pseudo_dice"])):
            return
        trainer.state.best_scores = {
            "epoch": trainer.state.epoch,
            "ema_pseudo_dice": score,
            "dice": {name: metrics[f"dice_{name}"] for name in self.labels},
        }
        self._write("model.pt", self._weights())

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
        self._write(FINAL, self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        """On the CPU, so that they load where there is no GPU."""
        return {name: value.cpu() for name, value in self.network.state_dict().items()}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        if is_main_process():
            with replacing(self.output_dir / name) as temporary:
                torch.save(content, temporary)


def open_run(output_dir: str, resume: bool | str, settings: Mapping[str, Any]) -> None:
    """Make the run's folder and its log file, before anything is written into it.

    Args:
        output_dir: the run's folder.
        resume: whether to continue the run that is there.
        settings: what a resumed run must share with the old one, kept in settings.json.

    Raises:
        UserError: the folder holds a run and ``resume`` is false, or the other way round; it cannot be
            written; another process trains in it; or the old run had other settings.
    """
    folder = Path(str(output_dir))  # a command line hands on a number where it is called 2024
    checkpoint = folder / CHECKPOINT
    resume = as_flag(resume, "resume")
    if not resume and (checkpoint.exists() or (folder / FINAL).exists()):
        raise UserError(
            f"{folder} already holds a run: continue it with --resume true, or start anew in another folder with "
            "--output_dir"
        )
    if resume and not checkpoint.exists():
        raise UserError(f"nothing to resume: {checkpoint} does not exist; check --output_dir, or leave out --resume")
    settings = as_typed(json.loads(json.dumps(settings)))
    if resume:
        _check_settings(folder / SETTINGS, settings)
    _make_folder(folder, settings)


def run_to_end(trainer: Engine) -> None:
    """Train; then, whatever came of it, close the log file, with which the folder is free for another process."""
    try:
        trainer.run()
    finally:
        _close_log()


def restore_run(
    trainer: Engine,
    evaluator: Engine,
    network: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    output_dir: str,
    resume: bool | str,
) -> None:
    """With ``resume``, set everything to where the run in ``output_dir`` stopped.

    The optimiser's moments, the epoch, the iteration, the best score and its moving average come from
    checkpoint.pt. Learning rate and number of epochs come from the config, so that both can be changed:
    the schedule is what it would have been at this epoch. Random numbers need nothing, they are a function of
    seed and epoch.

    Raises:
        UserError: the run is complete, or its checkpoint does not fit. A run that was stopped between its last
            checkpoint.pt and model_final.pt is not complete: it only writes the latter.
    """
    start_clean(trainer, evaluator)  # whatever came of an earlier run in this process
    if as_flag(resume, "resume"):
        _restore(Path(output_dir) / CHECKPOINT, trainer, evaluator, network, lr_scheduler)


def load_weights(network: torch.nn.Module, path: str | Path) -> None:
    """Load a file of weights (a state_dict) into a network.

    Raises:
        UserError: the file is missing or no such file, was damaged or holds NaN, or its weights do not fit the
            network, or the settings.json beside it says that they fit another scan order.
    """
    _put_into(network, read_weights(path), path)


def check_preparation(path: str | Path, preparation: Mapping[str, Any]) -> None:
    """Warn of weights whose settings.json says that their images were prepared otherwise, or their classes named so, or
    that the network pooled otherwise, which no weight's shape tells."""
    trained = read_settings(path)
    changed = [f"{key} {trained[key]}, now it is {preparation[key]}" for key in differing(trained, preparation)]
    if changed:
        logger.warning(
            f"the weights {path} were trained with {'; '.join(changed)}: predictions may be wrong, unless that is what "
            "you want; the task overlay of their training is the safe choice"
        )


def read_weights(path: str | Path, option: str = "--checkpoint") -> dict[str, torch.Tensor]:
    """A file of weights, or those of a checkpoint.pt, on the CPU; ``option`` is what names it on the command line.

    Raises:
        UserError: the file is missing or holds something else, was damaged, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: train first, or give another file with {option}")
    content = _read(path, f"give another with {option}")
    state = content.get("network", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds something else than the weights of a network: give another with {option}")
    return dict(state)


def weights_digest(path: str | Path) -> str:
    """What tells a file of weights from every other: a digest of its bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_settings(checkpoint: str | Path) -> dict[str, Any]:
    """What the settings.json beside a file of weights says of their training; nothing where there is none.

    Raises:
        UserError: it is broken.
    """
    file = Path(checkpoint).parent / SETTINGS
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({in_one_line(error)}): copy it from the training again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings: copy it from the training again")
    return content


def check_scan_order(network: torch.nn.Module, path: str | Path) -> None:
    """Refuse weights that were trained with another scan order than the network's, as their settings.json tells.

    No weight's shape tells of the order in which the voxels were read; without a settings.json nothing does.

    Raises:
        UserError: the orders differ.
    """
    trained = read_settings(path).get("scan_order")
    own = getattr(network, "scan_order", trained)
    if trained is not None and own != trained:
        raise UserError(
            f"the weights {path} were trained with scan_order {trained}, but the network reads in {own} order: "
            f"give --scan_order {trained}"
        )


def _read(path: Path, remedy: str) -> Any:
    try:
        return read_weight_file(path)
    except UnsoundWeightsError as error:
        raise UserError(f"{path} {error}; {remedy}") from error
    except Exception as error:  # zipfile and torch.load have many errors for a broken file
        reason = in_one_line(error).split(". ")[0]  # what follows advises to read untrusted files
        raise UserError(
            f"{path} is not a file of PyTorch weights, or not a whole one ({reason}): copy it again, or {remedy}"
        ) from error


def _put_into(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    check_scan_order(network, path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise UserError(
            f"the weights {path} do not fit the network; check the task overlay, init_filters and stem "
            f"({' '.join(reasons)[:300]})"
        ) from error


def _make_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    if not is_main_process():
        return
    _close_log()  # of an earlier run in this process that failed before it trained
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log_file = logging.FileHandler(folder / "training.log")
        _claim(folder, log_file)
        with replacing(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {folder}: {error.strerror}; give another --output_dir"
        ) from error
    log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(log_file)


def _close_log() -> None:
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()


def _claim(folder: Path, log_file: logging.FileHandler) -> None:
    """Keep other trainings out of the folder while the log file is open, where the system has file locks: until its
    first epoch ends, nothing else tells that a run is there."""
    try:
        import fcntl

        fcntl.flock(log_file.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        log_file.close()
        raise UserError(f"another training runs in {folder}: wait for its end, or give another --output_dir") from error
    except (ImportError, OSError):  # Windows; a network disk without locks
        return


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    old = as_typed(json.loads(path.read_text())) if path.is_file() else {}
    # A run of an older version may not have noted everything.
    changed = [f"{key} was {old[key]}, now {settings[key]}" for key in differing(old, settings)]
    if changed:
        raise UserError(f"the run in {path.parent} cannot go on with other settings: {'; '.join(changed)}")


def _restore(
    path: Path,
    trainer: Engine,
    evaluator: Engine,
    network: torch.nn.Module,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    saved = _read(path, f"the run in {path.parent} cannot go on from it: start another in another --output_dir")
    if not isinstance(saved, Mapping) or not {"network", "optimizer", "epoch"} <= saved.keys():
        raise UserError(f"{path} is not the checkpoint of a run: start another run in another --output_dir")
    _put_into(network, saved["network"], path)
    epoch = saved["epoch"]
    if epoch >= trainer.state.max_epochs and (path.parent / FINAL).is_file():
        raise UserError(f"the run in {path.parent} has done all its {epoch} epochs: give more with --epochs")
    try:
        _restore_optimizer(trainer.optimizer, lr_scheduler, saved["optimizer"], epoch)
    except ValueError as error:  # of its parameter groups; those of version 0.4 were others
        raise UserError(
            f"the run in {path.parent} cannot go on: its optimiser is not this config's, as after an update of the "
            f"bundle or of the config; finish it with those, or start another run with --pretrained {path}"
        ) from error
    evaluator.state.ema_pseudo_dice = saved["ema_pseudo_dice"]

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
    optimizer.load_state_dict(saved)
    for group, wanted in zip(optimizer.param_groups, configured, strict=True):
        group.update(wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a schedule that runs ahead of the optimiser
        for _ in range(epoch):
            lr_scheduler.step()
