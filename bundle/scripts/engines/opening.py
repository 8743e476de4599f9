"""Open the folder of a run: the checks before anything is written into it, its log file, and the claim to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from ..common.atomic_writing import replacing
from ..common.command_line import as_typed, differing, from_words
from ..common.distributed import is_main_process
from ..common.errors import UserError, cannot_write
from ..common.leftovers import remove_leftovers
from ..common.run_folder import RunFolder
from ..data.layouts import case_files
from ..images.outputs import check_output_folder, open_folder, refuse_foreign
from .weights import read_settings

__all__ = ["open_run", "run_folder", "run_to_end"]

logger = logging.getLogger("lightm_unet")


def open_run(
    output_dir: str,
    resume: bool,
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
    folder = RunFolder(check_output_folder(output_dir, "--output_dir", inputs))
    if cache_dir is not None:
        cache = check_output_folder(cache_dir, "--cache_dir", inputs)
        if cache.resolve() in (folder.path.resolve(), *folder.path.resolve().parents):
            raise UserError(f"--cache_dir {cache} holds the run's own folder, and a cache may be deleted: give another")
        remove_leftovers(cache, within=True)
    if not resume and (_exists(folder.checkpoint) or _exists(folder.final)):
        raise UserError(
            f"{folder.path} already holds a run: continue it with --resume true, or start anew in another folder with "
            "--output_dir"
        )
    if resume and not _exists(folder.checkpoint):
        raise UserError(
            f"nothing to resume: {folder.checkpoint} does not exist; check --output_dir, or leave out --resume"
        )
    settings = as_typed(json.loads(json.dumps(settings)))
    if resume:
        if folder.settings.is_file() and not _is_ours(folder.settings, settings):
            raise UserError(f"{folder.settings} is not that of a training: put that back, or give another --output_dir")
        _check_settings(folder, settings)
    elif is_main_process():  # the others see what it makes
        refuse_foreign(_not_ours(folder, settings), "--output_dir", empty_too=True)
    _make_folder(folder, settings)


@from_words
def run_folder(output_dir: str, cases: Sequence[Mapping[str, Any]], resume: bool = False) -> str:
    """The folder that a training writes into: ``output_dir``, or OUTPUT_DIR_2, OUTPUT_DIR_3, … beside it, where cases
    that a program handed in are trained on and a run is there already.

    Such cases, of MONAI Label for one, have no names of a data set's. They are others each time, so that the earlier
    run cannot go on, and there is nobody to give another folder.
    """
    if resume or not cases or any("name" in case for case in cases):
        return str(output_dir)
    folders = (RunFolder(f"{output_dir}{end}") for end in ("", *(f"_{number}" for number in range(2, 10_000))))
    return str(next(folder.path for folder in folders if not (_exists(folder.checkpoint) or _exists(folder.final))))


def run_to_end(trainer: Engine) -> None:
    """Train; then, whatever came of it, close the log file, with which the folder is free for another process."""
    try:
        trainer.run()
    finally:
        _close_log()


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError as error:
        raise UserError(
            f"cannot read the output folder {file.parent}: {error.strerror}; mend its permissions, or give "
            "another --output_dir"
        ) from error


def _not_ours(folder: RunFolder, settings: Mapping[str, Any]) -> list[Path]:
    """Files that a new run would replace, or write on in, and that no run that was killed in its first epoch left.

    Such a run has made training.log first, empty, and settings.json next; it had no weights yet.
    """
    log, file = folder.log, folder.settings
    started = log.is_file() and (_is_ours(file, settings) if file.is_file() else not log.stat().st_size)
    return [folder.best] if started else [folder.best, log, file, folder.cases, folder.epochs]


def _is_ours(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a settings.json is a training's: it shares names with one; an empty one is as good as none."""
    try:
        content = json.loads(file.read_bytes() or b"{}")
    except ValueError:
        return False
    return isinstance(content, dict) and (not content or not settings or bool(content.keys() & settings.keys()))


def _check_settings(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    old = as_typed(read_settings(folder.checkpoint))
    # A run of an older version may not have noted everything.
    changed = [f"{key} was {old[key]}, now {settings[key]}" for key in differing(old, settings)]
    if changed:
        raise UserError(f"the run in {folder.path} cannot go on with other settings: {'; '.join(changed)}")


def _make_folder(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    if not is_main_process():
        return
    _close_log()  # of an earlier run in this process that failed before it trained
    open_folder(folder.path, "--output_dir")
    try:
        log_file = logging.FileHandler(folder.log, encoding="utf-8")
        _claim(folder.path, log_file)
        with replacing(folder.settings) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(folder.path, error.strerror, "--output_dir") from error
    log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(log_file)


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


def _close_log() -> None:
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
