"""Checkpoints of a run: the best and the last weights, and everything a run needs to go on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..common.atomic_writing import replacing
from ..common.command_line import as_flag, as_typed, differing, or_none
from ..common.distributed import is_main_process
from ..common.errors import UserError, in_one_line
from ..common.leftovers import remove_leftovers
from ..common.readable_json import read_json
from ..common.root_causes import lack_of_memory
from ..data.layouts import case_files
from ..images.outputs import check_output_folder, open_folder, refuse_foreign
from ..networks import conv_stages_of
from ..networks.weight_files import UnsoundWeightsError, read_weight_file
from .clean_start import start_clean

__all__ = [
    "SaveCheckpoints",
    "check_conv_stages",
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

BEST = "model.pt"
CHECKPOINT = "checkpoint.pt"
FINAL = "model_final.pt"
LOG = "training.log"
SETTINGS = "settings.json"
CHECKPOINT_KEYS = {"network", "optimizer", "scaler", "epoch", "ema_pseudo_dice", "best_scores"}
logger = logging.getLogger("lightm_unet")


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
        best = self.evaluator.state.epoch == trainer.state.epoch and self._is_best(trainer)
        self._write(CHECKPOINT, self._everything(trainer))
        if best:
            self._write(BEST, self._weights())

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
        self._write(FINAL, self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        return _on_cpu(self.network.state_dict())

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        _save(self.output_dir / name, content)


def _on_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that load where there is no GPU."""
    return {name: value.cpu() for name, value in state.items()}


def _save(path: Path, content: Mapping[str, Any]) -> None:
    if is_main_process():
        with replacing(path) as temporary:
            torch.save(content, temporary)


def open_run(
    output_dir: str,
    resume: bool | str,
    settings: Mapping[str, Any],
    cache_dir: str | None = None,
    cases: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Make the run's folder and its log file, before anything is written into it.

    Args:
        output_dir: the run's folder.
        resume: whether to continue the run that is there.
        settings: what a resumed run must share with the old one, kept in settings.json.
        cache_dir: where prepared cases will be kept.
        cases: what is trained on, [{"image": path or paths, "label": path}, …]: nothing is written among these files.

    Raises:
        UserError: the folder holds a run and ``resume`` is false, or the other way round; it holds files that a run
            would replace; nothing may be written there (see images/outputs.py); another process trains in it; or the
            old run had other settings.
    """
    inputs = [file for case in cases for file in case_files(case)]
    folder = check_output_folder(output_dir, "--output_dir", inputs)
    if cache_dir is not None:
        cache = check_output_folder(cache_dir, "--cache_dir", inputs)
        if cache.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError(f"--cache_dir {cache} holds the run's own folder, and a cache may be deleted: give another")
        remove_leftovers(cache, within=True)
    checkpoint = folder / CHECKPOINT
    resume = as_flag(resume, "resume")
    if not resume and (_exists(checkpoint) or _exists(folder / FINAL)):
        raise UserError(
            f"{folder} already holds a run: continue it with --resume true, or start anew in another folder with "
            "--output_dir"
        )
    if resume and not _exists(checkpoint):
        raise UserError(f"nothing to resume: {checkpoint} does not exist; check --output_dir, or leave out --resume")
    settings = as_typed(json.loads(json.dumps(settings)))
    if resume:
        if (folder / SETTINGS).is_file() and not _is_ours(folder / SETTINGS, settings):
            raise UserError(
                f"{folder / SETTINGS} is not that of a training: put that back, or give another --output_dir"
            )
        _check_settings(folder / SETTINGS, settings)
    elif is_main_process():  # the others see what it makes
        refuse_foreign([folder / name for name in _not_ours(folder, settings)], "--output_dir", empty_too=True)
    _make_folder(folder, settings)


def _not_ours(folder: Path, settings: Mapping[str, Any]) -> list[str]:
    """Files that a new run would replace, or write on in, and that no run that was killed in its first epoch left.

    Such a run has made training.log first, empty, and settings.json next; it had no weights yet.
    """
    log, file = folder / LOG, folder / SETTINGS
    started = log.is_file() and (_is_ours(file, settings) if file.is_file() else not log.stat().st_size)
    return [BEST] if started else [BEST, LOG, SETTINGS, "cases.json", "log.jsonl"]


def _is_ours(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a settings.json is a training's: it shares names with one; an empty one is as good as none."""
    try:
        content = json.loads(file.read_bytes() or b"{}")
    except ValueError:
        return False
    return isinstance(content, dict) and (not content or not settings or bool(content.keys() & settings.keys()))


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
    seed and epoch. model.pt is written again if the run was stopped between its checkpoint.pt and it.

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
    is_2d = trained.get("spatial_dims") == 2 and or_none(trained.get("slice_axis")) is None
    if is_2d and "rows_first" not in trained and preparation.get("rows_first"):
        logger.warning(
            f"the weights {path} are of a time when 2D NIfTI, NRRD and MetaImage files came with rows and columns "
            "exchanged: if they learnt from such files, train anew"
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
    advice = "put the one of the training back, or remove it, and nothing is compared with it"
    return read_json(file, advice=advice) if file.is_file() else {}


def check_conv_stages(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Refuse weights of a network with convolutions in more or fewer stages, as those of version 0.6 are.

    Raises:
        UserError: names the option with which they fit.
    """
    own, theirs = conv_stages_of(network.state_dict()), conv_stages_of(state)
    if own != theirs:
        raise UserError(
            f"the weights {path} are those of a network with conv_stages {theirs}, this one has {own}: give "
            f'--conv_stages {theirs}, or put "conv_stages": {theirs} into the task\'s overlay'
        )


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


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as error:
        raise UserError(
            f"cannot read the output folder {file.parent}: {error.strerror}; mend its permissions, or give "
            "another --output_dir"
        ) from error


def _read(path: Path, remedy: str) -> Any:
    try:
        return read_weight_file(path)
    except UnsoundWeightsError as error:
        raise UserError(f"{path} {error}; {remedy}") from error
    except Exception as error:  # zipfile and torch.load have many errors for a broken file
        if reason := lack_of_memory(error):
            raise UserError(f"{path} cannot be read: {reason}") from error
        reason = in_one_line(error).split(". ")[0]  # what follows advises to read untrusted files
        raise UserError(
            f"{path} is not a file of PyTorch weights, or not a whole one ({reason}): copy it again, or {remedy}"
        ) from error


def _put_into(network: torch.nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    check_conv_stages(network, state, path)
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
    open_folder(folder, "--output_dir")
    try:
        log_file = logging.FileHandler(folder / LOG, encoding="utf-8")
        _claim(folder, log_file)
        with replacing(folder / SETTINGS) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
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
    old = as_typed(read_settings(path))
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
    _check_checkpoint(saved, path)
    _put_into(network, saved["network"], path)
    epoch = saved["epoch"]
    if epoch >= trainer.state.max_epochs and (path.parent / FINAL).is_file():
        raise UserError(f"the run in {path.parent} has done all its {epoch} epochs: give more with --epochs")
    try:
        _restore_optimizer(trainer.optimizer, lr_scheduler, saved["optimizer"], epoch)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # parameter groups of version 0.4 were others
        raise UserError(
            f"the run in {path.parent} cannot go on: its optimiser is not this config's, as after an update of the "
            f"bundle or of the config; finish it with those, or start another run with --pretrained {path}"
        ) from error
    evaluator.state.ema_pseudo_dice = saved["ema_pseudo_dice"]
    if saved["best_scores"] and saved["best_scores"]["epoch"] == epoch:
        _save(path.with_name(BEST), _on_cpu(saved["network"]))

    def at_start(engine: Engine) -> None:  # only here has the trainer its scaler, and not yet its first epoch
        engine.state.epoch = epoch
        engine.state.iteration = epoch * engine.state.epoch_length
        engine.state.best_scores = saved["best_scores"]
        if engine.scaler is not None and saved["scaler"]:
            engine.scaler.load_state_dict(saved["scaler"])
        logger.info(f"resuming after epoch {epoch} of {engine.state.max_epochs}")

    trainer.add_event_handler(Events.STARTED, at_start)


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
