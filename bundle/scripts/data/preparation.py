"""Prepares the cases of a run before it starts: room on the disk first, then all of them, in parallel."""

from __future__ import annotations

import errno
import logging
import math
import shutil
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..common.case_memory import case_memory, most_workers
from ..common.distributed import gather_objects, is_main_process, shard, world_size
from ..common.errors import UserError, cannot_write, find_user_error, first_few, one_line_reason
from ..common.free_memory import free_memory
from ..common.workers import in_processes
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


class CaseSize(NamedTuple):
    """Bytes of a prepared case on disk, float16 images and int8 labels, and in memory while it is prepared."""

    on_disk: int
    in_memory: int


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
        num_workers: processes that prepare in parallel (of each process of a run), 0: this one; fewer where free
            memory does not hold so many cases.

    Raises:
        UserError: the disk has too little room, before anything is written; or the list of all the cases that
            cannot be used, with the reasons.
    """
    everything = [(training, i) for i in range(len(training))]
    mine = _unique(shard(everything) + [(validation, i) for i in range(len(validation))])
    found = [(job, folder) for job in mine if (folder := job[0].find_prepared(job[1]))]
    whole = set(_look_through(found, int(num_workers)))
    missing = [job for job in mine if job not in whole]
    sizes = [size for job in missing if (size := _sizes(*job, spacing))]
    _check_space(len(missing), sizes, training.cache_dir)
    problems = gather_objects(_prepare_all(missing, _fitting_workers(sizes, int(num_workers))), PATIENCE)
    if problems:
        different = list(dict.fromkeys(problems))
        lines = first_few(different, MOST_LINES, "\n  ", counted=True)
        raise UserError(f"{len(different)} case(s) cannot be used:\n  {lines}")
    for dataset in (training, validation):
        for index in range(len(dataset)):
            dataset.prepare(index, trusted=True)  # finds where the case is, so that no loader has to


def _prepare(job: Job) -> str:
    """What is wrong with a case, or an empty string."""
    dataset, case = job
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
    damages = in_processes(find_damage, [folder for _, folder in found], num_workers, "--num_workers")
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
    option = "--num_workers; the cases that were finished are kept"
    found = in_processes(partial(_prepare_of, jobs), range(len(jobs)), num_workers, option)
    hidden = None if is_main_process() else True
    bar = tqdm(found, "preparing cases", len(jobs), unit="case", leave=False, disable=hidden)
    return [problem for problem in bar if problem]


def _prepare_of(jobs: Sequence[Job], index: int) -> str:
    return _prepare(jobs[index])


def _check_space(cases: int, sizes: Sequence[CaseSize], cache_dir: Path) -> None:
    count, needed = (sum(gather_objects([n])) for n in (cases, sum(size.on_disk for size in sizes)))
    if not count:
        return
    free = shutil.disk_usage(nearest_existing(cache_dir.resolve())).free
    figures = f"{count} cases will take about {_size(needed)} in {cache_dir}, where {_size(free)} are free"
    if is_main_process():
        logger.info(f"preparing cases: {figures}")
    if needed * HEADROOM > free:
        raise UserError(f"{figures}: make room, or choose another place with --cache_dir")


def _fitting_workers(sizes: Sequence[CaseSize], num_workers: int) -> int:
    """As many of the processes as free memory holds with the largest cases; fewer are said in one line."""
    free = free_memory()
    mine = None if free is None else free // world_size()
    fitting = most_workers(num_workers, [size.in_memory for size in sizes], mine)
    if fitting < num_workers and is_main_process():
        largest = max(size.in_memory for size in sizes)
        logger.info(
            f"preparing cases: {fitting} at once instead of {num_workers}, since one takes up to {_size(largest)} of "
            f"memory and {_size(free)} are free"
        )
    return fitting


def _sizes(dataset: PreparedDataset, index: int, spacing: Sequence[float | None] | None) -> CaseSize | None:
    """Before any cropping; None for a file that cannot be read."""
    files = dataset.data[index]["image"]
    headers = [read_header(file) for file in image_files(files)]
    if any(header is None for header in headers):
        return None  # preparing will say why
    shape, old, _ = headers[0]
    axes = planar_axes(shape, first_file(files))
    if axes is not None and spacing is not None and len(spacing) == 2:  # a volume of one slice is a 2D image
        shape, old = (values and [values[axis] for axis in axes] for values in (shape, old))
    channels, size = sum(header[2] for header in headers), shape
    if spacing is not None and old is not None:
        size = resampled_size(shape, old, spacing)
        if resampling_problem(shape, old, size, [new or mm for new, mm in zip(spacing, old, strict=True)], channels):
            return None  # preparing will name the file
    return CaseSize(math.prod(size) * (2 * channels + 1), case_memory(shape, size, channels))


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
