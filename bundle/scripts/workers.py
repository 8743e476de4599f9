"""Work on many cases in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import torch
from tqdm import tqdm

from .errors import UserError, find_user_error

__all__ = ["default_workers", "map_cases"]

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_LISTED = 50


def default_workers() -> int:
    """The processors that this process may use, at most 8: each worker holds a case in memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, as the results come.

    Every item is tried; those that fail with a UserError are collected and reported together at the end.

    Args:
        function: can be pickled, returns something small.
        items: small descriptions of the cases (names, paths).
        description: of the progress bar.
        workers: processes; 0 works in this one, None takes default_workers().

    Raises:
        UserError: lists the messages of the items that failed; or a worker was killed.
    """
    workers = default_workers() if workers is None else workers
    problems: list[UserError] = []
    outcomes = _outcomes(partial(_attempt, function), items, workers)
    for outcome in tqdm(outcomes, description, len(items), unit="case", disable=None):
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            yield outcome
    if problems:
        shown = [str(problem) for problem in problems[:MOST_LISTED]]
        more = len(problems) - len(shown)
        lines = shown + ([f"… and {more} more"] if more else [])
        raise UserError(f"{len(problems)} of {len(items)} cases cannot be used:\n  " + "\n  ".join(lines))


def _outcomes(
    function: Callable[[Item], Result | UserError], items: Sequence[Item], workers: int
) -> Iterator[Result | UserError]:
    workers = min(workers, len(items))
    if workers < 2:
        yield from map(function, items)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, probably for lack of memory: try again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted run does not finish the queue


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | UserError:
    try:
        return function(item)
    except Exception as error:
        if user_error := find_user_error(error):
            return UserError(str(user_error))
        raise
