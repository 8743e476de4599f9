"""Work on many cases in several processes, with a progress bar; and processes that end with the one they work for."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from .errors import UserError, first_few, one_line_reason

__all__ = [
    "STARTED_BY",
    "WatchedPool",
    "default_workers",
    "end_children_with_this_process",
    "end_with_cross_validation",
    "end_with_starter",
    "map_cases",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_LISTED = 50
STARTED_BY = "LIGHTM_UNET_STARTED_BY"  # environment variable: the process of the cross-validation
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in Linux's sys/prctl.h
_forking: int | None = None  # the process that forks, once its children are to end with it


def default_workers() -> int:
    """The processors that this process may use, at most 8: each worker holds a case in memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def map_cases(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, as the results come.

    Every item is tried; those that fail for a reason that a user can mend are collected and reported at the end.

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
        lines = first_few(problems, MOST_LISTED, "\n  ", counted=True)
        raise UserError(f"{len(problems)} of {len(items)} cases cannot be used:\n  {lines}")


def _outcomes(
    function: Callable[[Item], Result | UserError], items: Sequence[Item], workers: int
) -> Iterator[Result | UserError]:
    workers = min(workers, len(items))
    if workers < 2:
        yield from map(function, items)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with WatchedPool(workers, context, initializer=_start_worker) as pool:
        try:
            for future in [pool.submit(function, item) for item in items]:
                pool.first_done([future])
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, probably for lack of memory: try again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupted run does not finish the queue


class WatchedPool(ProcessPoolExecutor):
    """A pool of processes that ends with an error when there is no memory for its threads: the one that leads it then
    ends, and a plain ProcessPoolExecutor waits for ever.

    Takes what a ProcessPoolExecutor takes.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._threads, self._children = set(threading.enumerate()), set(multiprocessing.active_children())
        super().__init__(*arguments, **options)

    def first_done(self, futures: Collection[Future]) -> set[Future]:
        """Wait until one or more of these are done, and return those.

        Raises:
            UserError: none ever will be.
        """
        while True:
            led = self._is_led()
            if done := wait(futures, timeout=1.0, return_when=FIRST_COMPLETED).done:
                return done
            if not led:
                raise UserError(
                    "the worker processes cannot be led: memory or threads ran out; try again with fewer --workers"
                )

    def __exit__(self, *error: Any) -> None:
        """Wait for the processes; those that nothing leads would wait for ever, and are killed."""
        if self._is_led():
            super().__exit__(*error)
            return
        for process in set(multiprocessing.active_children()) - self._children:
            process.kill()
            process.join()

    def _is_led(self) -> bool:
        return bool(set(threading.enumerate()) - self._threads)


def end_with_starter() -> None:
    """Initializer of a process pool: a worker ends as soon as the process that made the pool has ended, killed too."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        threading.Thread(target=_outlive, args=(starter,), daemon=True).start()


def end_children_with_this_process() -> None:
    """Have every process that is forked from this one from now on, as loader workers are, end at once when this one
    does, killed too. On Linux only; elsewhere PyTorch's loader workers look for it every five seconds."""
    global _forking
    if _forking is None and _prctl is not None:
        _forking = os.getpid()
        os.register_at_fork(before=_note_parent, after_in_child=_start_fork)


def end_with_cross_validation() -> None:
    """End with the cross-validation that started this run, if one did. On Linux only."""
    if _prctl is not None and (parent := os.environ.get(STARTED_BY)):
        _end_with_parent(int(parent))


def _outlive(starter: multiprocessing.process.BaseProcess) -> None:
    starter.join()
    os._exit(1)


def _kernel_call() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError, TypeError):
        return None


_prctl = _kernel_call()  # looked up before any fork, after which that may hang


def _end_with_parent(parent: int) -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)


def _note_parent() -> None:
    global _forking
    _forking = os.getpid()


def _start_fork() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent does then is not the child's task
    _end_with_parent(_forking)


def _start_worker() -> None:
    torch.set_num_threads(1)
    end_with_starter()


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | UserError:
    try:
        return function(item)
    except Exception as error:
        if reason := one_line_reason(error):
            return UserError(reason)
        raise
