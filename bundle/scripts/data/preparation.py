"""Prepares the cases of a run before it starts: room on the disk first, then all of them, in parallel."""

from __future__ import annotations

import errno
import logging
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..common.distributed import gather_objects, is_main_process, shard
from ..common.errors import UserError, cannot_write, find_user_error, first_few, one_line_reason
from ..images.files import first_file, image_files
from ..images.formats import planar_axes
from ..images.headers import read_header
from ..images.outputs import nearest_existing
from .cache_check import NO_LIST, find_damage
from .prepared import PreparedDataset, source_files
from .resampling import resampled_size, resampling_problem

__all__ = ["prepare_cases"]

PATIENCE = timedelta(days=7)  # for the slowest of several processes
HEADROOM = 1.05
MOST_LINES = 50  # of cases that cannot be used
_DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EACCES", "EPERM", "EROFS", "ENOTDIR")
    if hasattr(errno, name)
}
Job = tuple[PreparedDataset, int]
logger = logging.getLogger("lightm_unet")


def prepare_cases(
    training: PreparedDataset,
    validation: PreparedDataset,
    spacing: Sequence[float | None] | None = None,
    num_workers: int = 0,
) -> None:
    """Prepare every case of a run that is not yet on disk, or no longer as it was written; each is checked on the way
    (see LoadCased).

    Args:
        training: the same in every process; they share the work.
        validation: of several processes, each has its own share.
        spacing: what cases are resampled to, for the estimate of the disk space.
        num_workers: processes that prepare in parallel (of each process of a run), 0: this one.

    Raises:
        UserError: the disk has too little room, before anything is written; or the list of all the cases that
            cannot be used, with the reasons.
    """
    everything = [(training, i) for i in range(len(training))]
    mine = _unique(shard(everything) + [(validation, i) for i in range(len(validation))])
    found = [(job, folder) for job in mine if (folder := job[0].find_prepared(job[1]))]
    whole = set(_look_through(found, num_workers))
    missing = [job for job in mine if job not in whole]
    _check_space(missing, training.cache_dir, spacing)
    problems = gather_objects(_prepare_all(missing, num_workers), PATIENCE)
    if problems:
        different = list(dict.fromkeys(problems))
        lines = first_few(different, MOST_LINES, "\n  ", counted=True)
        raise UserError(f"{len(different)} case(s) cannot be used:\n  {lines}")
    for dataset in (training, validation):
        for index in range(len(dataset)):
            dataset.prepare(index, trusted=True)  # finds where the case is, so that no loader has to


class _Jobs(torch.utils.data.Dataset):
    """Prepares case ``index``; hands out what is wrong with it, or an empty string."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> str:
        dataset, case = self.jobs[index]
        try:
            dataset.prepare(case)
        except Exception as error:
            cause = find_user_error(error) or _disk_error(error, dataset.cache_dir) or one_line_reason(error)
            if cause is None:
                raise RuntimeError(f"preparing {dataset.data[case]} failed") from error
            return str(cause)
        return ""


def _look_through(found: Sequence[tuple[Job, Path]], num_workers: int) -> list[Job]:
    """The cases whose arrays are as they were written; what is wrong with the others is logged, one line a case."""
    with ThreadPoolExecutor(max(1, int(num_workers))) as pool:  # digests leave Python's lock to the others
        damages = pool.map(find_damage, [folder for _, folder in found])
        bar = tqdm(damages, "checking cases", len(found), leave=False, disable=None if is_main_process() else True)
        problems = [(job, folder, problem) for (job, folder), problem in zip(found, bar, strict=True)]
    older = sum(problem == NO_LIST for _, _, problem in problems)
    if older:
        logger.warning(f"{older} prepared case(s) {NO_LIST}, which tells whether they are whole, are prepared anew")
    for _, folder, problem in problems:
        if problem not in (None, NO_LIST):
            logger.warning(f"the prepared case {folder} {problem}: it is prepared anew")
    return [job for job, _, problem in problems if problem is None]


def _prepare_all(jobs: Sequence[Job], num_workers: int) -> list[str]:
    loader = DataLoader(_Jobs(jobs), batch_size=None, num_workers=min(int(num_workers), len(jobs)))
    bar = tqdm(loader, "preparing cases", unit="case", leave=False, disable=None if is_main_process() else True)
    try:
        return [problem for problem in bar if problem]
    except RuntimeError as error:
        if "killed by signal" not in str(error) and "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"a process that prepared cases was killed, most likely because memory ran out ({error}): start again "
            f"with fewer than --num_workers {num_workers}; the cases that were finished are kept"
        ) from error


def _check_space(jobs: Sequence[Job], cache_dir: Path, spacing: Sequence[float | None] | None) -> None:
    count, needed = (sum(gather_objects([n])) for n in (len(jobs), sum(_estimate(*job, spacing) for job in jobs)))
    if not count:
        return
    free = shutil.disk_usage(nearest_existing(cache_dir.resolve())).free
    figures = f"{count} cases will take about {_size(needed)} in {cache_dir}, where {_size(free)} are free"
    if is_main_process():
        logger.info(f"preparing cases: {figures}")
    if needed * HEADROOM > free:
        raise UserError(f"{figures}: make room, or choose another place with --cache_dir")


def _estimate(dataset: PreparedDataset, index: int, spacing: Sequence[float | None] | None) -> int:
    """Bytes on disk: float16 images and int8 labels, before any cropping; 0 for a file that cannot be read."""
    files = dataset.data[index]["image"]
    headers = [read_header(file) for file in image_files(files)]
    if any(header is None for header in headers):
        return 0  # preparing will say why
    shape, old, _ = headers[0]
    axes = planar_axes(shape, first_file(files))
    if axes is not None and spacing is not None and len(spacing) == 2:  # a volume of one slice is a 2D image
        shape, old = (values and [values[axis] for axis in axes] for values in (shape, old))
    channels, size = sum(header[2] for header in headers), shape
    if spacing is not None and old is not None:
        size = resampled_size(shape, old, spacing)
        if resampling_problem(shape, old, size, [new or mm for new, mm in zip(spacing, old, strict=True)], channels):
            return 0  # preparing will name the file
    return math.prod(size) * (2 * channels + 1)


def _unique(jobs: Sequence[Job]) -> list[Job]:
    """Without cases that stand in both data sets."""
    return list({(job[0].folder, *source_files(job[0].data[job[1]])): job for job in jobs}.values())


def _disk_error(error: BaseException | None, cache_dir: Path) -> UserError | None:
    """What the system says if the folder cannot be written or is full."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    reason = error.strerror if error.errno in _DISK_ERRORS else None
    if error.errno is None and " requested and " in str(error):  # NumPy's words, which keep the system's to itself
        reason = "not everything could be written, the disk is full or files may not grow so large"
    if reason is None:
        return None
    return cannot_write(cache_dir, reason, "--cache_dir")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
