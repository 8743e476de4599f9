"""The integrity check: every case read once, in parallel, and everything wrong with a data set said in one go."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..common.errors import UserError, first_few
from ..common.workers import WatchedPool, default_workers, end_with_starter
from ..data.layouts import DatasetDescription, case_files, read_dataset
from ..images.files import image_suffix
from ..images.formats import drop_slice_axis
from ..images.geometry import LARGEST_STEP, spacing_of, times, to_ras
from . import fork_server
from .case_report import CaseReport, Problem, examine_case

__all__ = ["CaseReport", "DatasetReport", "Problem", "check_dataset", "examine_case", "problem_lines"]

SMALLEST_MM, LARGEST_MM = 1e-3, 100  # of voxels whose size in mm can be believed
MOST_STARTS = 5  # of worker processes that are killed meanwhile
MOST_NAMES = 20  # of files with one problem, in a line
VOXELS = re.compile(r" in \d+ voxel\(s\)")  # by which alone files with one problem may differ


@dataclass
class DatasetReport:
    """What is wrong with a data set, and what was learnt of each case.

    Args:
        description: what dataset.json declares.
        cases: one report per case, in the order of the description.
        errors: why the data set cannot be used as it is.
        warnings: what the user should look at.
        image_dims: 2 or 3; volumes of one slice are 2D where every image is 2D or such a volume.
        channel_names: the declared ones, or channel_0, … where dataset.json names none.
    """

    description: DatasetDescription
    cases: list[CaseReport]
    errors: list[Problem]
    warnings: list[Problem]
    image_dims: int
    channel_names: list[str]


def check_dataset(dataset_dir: str | Path, workers: int | None = None, progress: bool | None = None) -> DatasetReport:
    """Read every file of a data set once and report all problems.

    Memory holds one case per worker, never the data set.

    Args:
        dataset_dir: a data set in the MSD layout or nnU-Net's.
        workers: processes that read; 0 reads in this one; None takes default_workers().
        progress: whether to show a bar; None: on a terminal.

    Raises:
        UserError: dataset.json is missing or cannot be understood; every other problem stands in the report.
    """
    description = read_dataset(dataset_dir)
    grey = len(description.channel_names) == 1
    arguments = [(case, description.labels, description.ignore_label, grey) for case in description.cases]
    workers = min(len(arguments), default_workers() if workers is None else workers)
    reports: list[CaseReport | None] = [None] * len(arguments)
    bar = tqdm(
        total=len(arguments), desc="reading cases", unit="case", disable=None if progress is None else not progress
    )
    with bar:
        for index, report in _run(examine_case, arguments, workers):
            reports[index] = report or _crashed(description.cases[index])
            bar.update()
    return _judge(description, [report for report in reports if report is not None])


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """One line a problem; files with the same problem share one, so that nothing drowns."""
    alike: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        alike[VOXELS.sub("", problem.message)].append(problem)
    return [str(found[0]) if len(found) == 1 else _one_line(message, found) for message, found in alike.items()]


def _one_line(message: str, problems: Sequence[Problem]) -> str:
    names = first_few((problem.file for problem in problems), MOST_NAMES, counted=True)
    return f"{len(problems)} files: {message}: {names}"


# --- in parallel


def _run(function: Callable, arguments: Sequence[tuple], workers: int) -> Iterator[tuple[int, Any]]:
    """(index, function(*arguments[index])) as they are ready; None for a call that takes its process down."""
    if workers == 0:
        yield from ((index, function(*values)) for index, values in enumerate(arguments))
        return
    waiting, alone, starts = list(range(len(arguments)))[::-1], [], iter(range(MOST_STARTS))
    while waiting:
        lost = yield from _run_pool(function, arguments, waiting, workers, starts)
        alone += lost
    for index in alone:  # one of those that were under way broke the pool: each gets a process of its own
        waiting = [index]
        while waiting:
            if (yield from _run_pool(function, arguments, waiting, 1, starts)):
                yield index, None


def _run_pool(
    function: Callable, arguments: Sequence[tuple], waiting: list[int], workers: int, starts: Iterator[int]
) -> Iterator[tuple[int, Any]]:
    """Take calls off the end of ``waiting`` until none is left or the pool breaks; returns those that were lost.

    A process that was killed while it started had no call yet, which costs one of ``starts``.
    """
    running: dict[Future, int] = {}
    context = _context()
    with fork_server.ending_with_this_process(), WatchedPool(workers, context, initializer=end_with_starter) as pool:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                index = waiting.pop()
                try:
                    running[pool.submit(function, *arguments[index])] = index
                except BrokenProcessPool:
                    return [*running.values(), index]
                except (EOFError, ConnectionError) as error:
                    if next(starts, None) is None:
                        raise UserError(
                            "the workers that read cases are killed as they start: try again, or with --workers 1"
                        ) from error
                    waiting.append(index)
                    return list(running.values())
            for future in pool.first_done(running):
                if isinstance(future.exception(), BrokenProcessPool):
                    return list(running.values())
                yield running.pop(future), future.result()
    return []


def _context() -> multiprocessing.context.BaseContext:
    """Processes that start clean: forking one in which PyTorch or ITK runs threads can hang."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([fork_server.__name__, examine_case.__module__])
    return context


def _crashed(case: Mapping[str, Any]) -> CaseReport:
    file = case_files(case)[0]
    message = "or its label ends the process that reads it (out of memory, or a file that breaks its reader)"
    return CaseReport(case["name"], file, errors=[Problem(file, message)])


# --- the data set as a whole


def _judge(description: DatasetDescription, cases: list[CaseReport]) -> DatasetReport:
    errors = [problem for case in cases for problem in case.errors]
    warnings = [problem for case in cases for problem in case.warnings]
    read = [case for case in cases if case.shape]
    image_dims = _image_dims(read)
    errors += _wrong_dimensions(read, image_dims) + _wrong_spacings(read, image_dims)
    names, channel_errors = _channels(description, read)
    errors += channel_errors + _declaration_errors(description, cases)
    warnings += _strange_spacing(description, read) + _unseen_labels(description, cases) + _duplicates(read)
    warnings += _shared_labels(description) + _unused_files(description)
    return DatasetReport(description, cases, errors, warnings, image_dims, names)


def _is_flat(case: CaseReport) -> bool:
    return len(case.shape) == 2 or drop_slice_axis(case.shape) is not None


def _image_dims(cases: Sequence[CaseReport]) -> int:
    """3 unless pictures are the majority; volumes of one slice make a 2D data set only among themselves."""
    if all(_is_flat(case) for case in cases):
        return 2 if cases else 3
    return 2 if sum(len(case.shape) == 2 for case in cases) > len(cases) / 2 else 3


def _wrong_dimensions(cases: Sequence[CaseReport], image_dims: int) -> list[Problem]:
    return [
        Problem(case.file, f"has {len(case.shape)} dimensions in a data set of {image_dims}D images: leave it out")
        for case in cases
        if not (_is_flat(case) if image_dims == 2 else len(case.shape) == 3)
    ]


def _wrong_spacings(cases: Sequence[CaseReport], image_dims: int) -> list[Problem]:
    """Cases whose voxels are so much larger or smaller than the others' that resampling would refuse them."""
    sizes = {case.file: _spacing(case, image_dims) for case in cases if case.affine is not None}
    alike = {file: size for file, size in sizes.items() if len(size) == image_dims}
    if not alike:
        return []
    usual = np.median(list(alike.values()), axis=0)
    return [
        Problem(file, f"has voxels of {times(size)} mm, most have {times(usual)} mm: mend its header")
        for file, size in alike.items()
        if max(np.max(size / usual), np.max(usual / size)) > LARGEST_STEP
    ]


def _strange_spacing(description: DatasetDescription, cases: Sequence[CaseReport]) -> list[Problem]:
    sizes = [spacing_of(case.affine, len(case.shape)) for case in cases if case.affine is not None]
    usual = float(np.median(np.concatenate(sizes))) if sizes else 1.0
    if SMALLEST_MM <= usual <= LARGEST_MM:
        return []
    return [Problem(str(description.file), f"belongs to images with voxels of {usual:.3g} mm: are these millimetres?")]


def _spacing(case: CaseReport, image_dims: int) -> np.ndarray:
    """Voxel size in mm along the axes of an image, in RAS order where it is a volume."""
    sizes, axis = spacing_of(case.affine, len(case.shape)), drop_slice_axis(case.shape)
    if len(sizes) == 3 and image_dims == 3:
        return np.array(to_ras(case.affine, sizes))
    return np.array(sizes) if axis is None else np.delete(sizes, axis)


def _channels(description: DatasetDescription, cases: Sequence[CaseReport]) -> tuple[list[str], list[Problem]]:
    """Names of the channels, and the images that have another number of them."""
    usual = Counter(case.channels for case in cases).most_common(1)[0][0] if cases else 1
    names = description.channel_names or [f"channel_{i}" for i in range(usual)]
    if len(names) != usual:
        have = f"declares {len(names)} channel(s) ({', '.join(names)}), but most images have {usual}"
        return names, [Problem(str(description.file), have)]
    return names, [
        Problem(case.file, f"has {case.channels} channel(s), the data set has {usual}")
        for case in cases
        if case.channels != usual
    ]


def _declaration_errors(description: DatasetDescription, cases: Sequence[CaseReport]) -> list[Problem]:
    file = str(description.file)
    if not description.labels:
        return [Problem(file, 'declares no label: it needs "labels" with at least one besides the background')]
    values = set(description.labels.values())
    whole = [case for case in cases if case.values]
    if whole and not any(values & case.values.keys() for case in whole):
        return [Problem(file, "belongs to a data set in which no case has any foreground")]
    return []


def _unseen_labels(description: DatasetDescription, cases: Sequence[CaseReport]) -> list[Problem]:
    seen = {value for case in cases for value in case.values}
    unseen = [f"{name} ({value})" for name, value in description.labels.items() if value not in seen]
    if not unseen or not seen:
        return []
    return [Problem(str(description.file), f"declares labels that no case has: {', '.join(unseen)}")]


def _duplicates(cases: Sequence[CaseReport]) -> list[Problem]:
    first: dict[str, CaseReport] = {}
    problems = []
    for case in cases:
        original = first.setdefault(case.digest, case)
        if original is not case:
            hint = "if they fall into different folds, validation scores are too good"
            problems.append(Problem(case.file, f"holds the same voxels as {original.file}: {hint}"))
    return problems


def _shared_labels(description: DatasetDescription) -> list[Problem]:
    cases = defaultdict(list)
    for case in description.cases:
        cases[case["label"]].append(case["name"])
    return [
        Problem(label, f"is the label of {len(names)} cases: {', '.join(names[:MOST_NAMES])}")
        for label, names in cases.items()
        if len(names) > 1
    ]


def _unused_files(description: DatasetDescription) -> list[Problem]:
    """Images beside those of the cases that no case uses, and a number of cases that is not the declared one."""
    used = {os.path.realpath(path) for case in description.cases for path in case_files(case)}
    problems = [
        Problem(str(file), "belongs to no case")
        for folder in sorted({Path(path).parent for path in used})
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if image_suffix(file) and not file.name.startswith(".") and os.path.realpath(file) not in used
    ]
    if description.declared_cases not in (None, len(description.cases)):
        counts = f"says numTraining {description.declared_cases}, but there are {len(description.cases)} cases"
        problems.append(Problem(str(description.file), counts))
    return problems
