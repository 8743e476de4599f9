"""Work on many cases in several processes, with a progress bar; and processes that end with the one they work for.

Cases are handed out and results come back through pipes, one a process, and nothing else. An executor and PyTorch's
loader add threads and queues: where memory runs out as such a thread starts, or as it packs what it was given, the case
or its result is lost and everything waits for ever. The start of tqdm's monitor, a thread too, may never return either.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
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
    "in_processes",
    "map_cases",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_LISTED = 50
STARTED_BY = "LIGHTM_UNET_STARTED_BY"  # environment variable: the process of the cross-validation
tqdm.monitor_interval = 0  # no thread that looks after bars
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
    outcomes = in_processes(partial(_attempt, function), items, workers)
    for outcome in tqdm(outcomes, description, len(items), unit="case", disable=None):
        if isinstance(outcome, UserError):
            problems.append(outcome)
        else:
            yield outcome
    if problems:
        lines = first_few(problems, MOST_LISTED, "\n  ", counted=True)
        raise UserError(f"{len(problems)} of {len(items)} cases cannot be used:\n  {lines}")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, option: str = "--workers"
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, as the results come.

    Args:
        function: can be pickled where processes are not forked; returns something small.
        items: small.
        workers: processes; fewer than 2 processes or items are worked on in this one.
        option: by which a user sets their number.

    Raises:
        UserError: a process was killed, or ended because it had no memory.
        Exception: what the function raised, with the other process's traceback as its cause.
    """
    workers = min(workers, len(items))
    if workers < 2:
        yield from map(function, items)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
            processes[ours].start()
            theirs.close()
        yield from _in_order(_exchange(list(processes), items))
    except _Ended as error:
        raise UserError(
            f"a worker process was killed, probably for lack of memory: try again with fewer {option}"
        ) from error
    finally:  # an interrupted run does not finish what it began
        for pipe, process in processes.items():
            pipe.close()
            if process.pid is not None:
                process.kill()
                process.join()


def _exchange(pipes: Sequence[Connection], items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
    """Hand each process one item after the other; yields (index, result) as they are ready."""
    waiting, running = iter(enumerate(items)), {}
    ready: Collection[Any] = pipes
    while ready:
        for pipe in ready:
            if pipe in running:
                result, error, trace = _unless_ended(pipe.recv)
                if error is not None:
                    raise error from _OtherProcess(trace)
                yield running.pop(pipe), result
            if (following := next(waiting, None)) is not None:
                running[pipe], item = following
                _unless_ended(pipe.send, item)
        ready = wait_for_any(list(running)) if running else []


def _in_order(results: Iterator[tuple[int, Result]]) -> Iterator[Result]:
    early: dict[int, Result] = {}
    following = 0
    for index, result in results:
        early[index] = result
        while following in early:
            yield early.pop(following)
            following += 1


class _Ended(Exception):
    """Another process is no more."""


class _OtherProcess(Exception):
    """The traceback of an error in another process, as text."""


def _unless_ended(exchange: Callable[..., Any], *values: Any) -> Any:
    try:
        return exchange(*values)
    except (EOFError, OSError) as error:
        raise _Ended from error


def _serve(function: Callable[[Item], Result], pipe: Connection, parent: int) -> None:
    """A process's work: (result, None, "") or (None, error, its traceback) for each item, until it is killed."""
    try:
        torch.set_num_threads(1)
        if _prctl is not None:
            _end_with_parent(parent)
        else:
            end_with_starter()
        while True:
            pipe.send(_answer(function, pipe.recv()))
    finally:  # without memory, or interrupted: the other process says so
        os._exit(1)


def _answer(function: Callable[[Item], Result], item: Item) -> tuple[Result | None, Exception | None, str]:
    try:
        return function(item), None, ""
    except Exception as error:
        return None, _portable(error), traceback.format_exc()


def _portable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # it has a constructor of its own, or holds what stays in its process
        return RuntimeError(f"{type(error).__name__}: {error}")


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


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | UserError:
    try:
        return function(item)
    except Exception as error:
        if reason := one_line_reason(error):
            return UserError(reason)
        raise
