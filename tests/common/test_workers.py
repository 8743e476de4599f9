"""Work in several processes."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.common.workers import WatchedPool, in_processes, map_cases

BUNDLE = Path(__file__).parents[2] / "bundle"

# One process with a child of each kind, each of which writes its number: a pool's, a fork's, and a run that
# cross-validation started before it was killed itself.
FAMILY = """
import os, sys, time
from scripts.common import workers

def note(_):
    os.write(1, b"%d\\n" % os.getpid())  # at once: several write
    time.sleep(60)

workers.end_children_with_this_process()
if os.fork() == 0:
    note(0)
if os.fork() == 0:
    os.environ[workers.STARTED_BY] = "1"
    workers.end_with_cross_validation()
    print("a run without its cross-validation goes on", flush=True)
for _ in workers.map_cases(note, [1, 2], "", 2):
    pass
"""


def square(number: int) -> int:
    if number == 3:
        raise UserError("three is broken")
    if number == 4:
        raise RuntimeError("caused by") from UserError("four is broken")
    return number * number


def die(number: int) -> int:
    os._exit(1)


def wait_and_return(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Peculiar(Exception):
    """Cannot be unpickled: its constructor takes two values."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} with two: {two}")


def fail_peculiarly(number: int) -> int:
    raise Peculiar(number, 2)


class Unanswerable:
    def __reduce__(self) -> tuple:
        raise MemoryError


def answer_what_no_memory_holds(number: int) -> Unanswerable:
    return Unanswerable()


@pytest.mark.parametrize("workers", [0, 2])
def test_all_are_tried_and_all_problems_listed(workers: int) -> None:
    assert list(map_cases(square, [0, 1, 2], "", workers)) == [0, 1, 4]
    results = []
    with pytest.raises(UserError, match=r"(?s)2 of 5 cases cannot be used:.*three is broken.*four is broken"):
        results.extend(map_cases(square, [1, 3, 4, 5, 6], "", workers))
    assert list(map_cases(square, [], "", workers)) == []


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(UserError, match="fewer --workers"):
        list(map_cases(die, [1, 2, 3], "", 2))


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(in_processes(wait_and_return, [0.3, 0.0, 0.1, 0.0, 0.2], 3)) == [0.3, 0.0, 0.1, 0.0, 0.2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_ours_comes_through_with_its_traceback(workers: int) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError, match="2") as caught:
        list(in_processes({1: 1, 3: 3}.__getitem__, [1, 2, 3], workers))
    assert workers == 0 or "Traceback (most recent call last)" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError if workers else Peculiar, match="with two"):
        list(in_processes(fail_peculiarly, [1, 2], workers))
    assert set(multiprocessing.active_children()) <= before


def test_a_process_without_memory_for_its_answer_is_an_error_not_a_hang() -> None:
    """A queue's own thread would say so, forget the answer, and go on."""
    with pytest.raises(UserError, match=r"killed, probably for lack of memory: try again with fewer --num_workers$"):
        list(in_processes(answer_what_no_memory_holds, [1, 2, 3], 2, "--num_workers"))


def test_no_thread_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory a thread may end before it says that it has begun, which its starter waits for."""

    def start(thread: threading.Thread) -> None:
        raise AssertionError(f"{thread} is started")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert list(map_cases(square, [0, 1, 2], "", 2)) == [0, 1, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pool_without_memory_for_its_threads_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_thread(queue: object) -> None:
        raise RuntimeError("can't start new thread")

    before = set(multiprocessing.active_children())  # another test's loader may still be waiting to be collected
    context = multiprocessing.get_context("fork")
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.queues.Queue, "_start_thread", start_thread)
        with (
            pytest.raises(UserError, match="memory or threads ran out; try again with fewer --workers"),
            WatchedPool(2, context) as pool,
        ):
            pool.first_done([pool.submit(square, 1)])
    assert not set(multiprocessing.active_children()) - before, "Python would wait for them at its end"
    with WatchedPool(2, context) as pool:
        (done,) = pool.first_done([pool.submit(square, 2)])
        assert done.result() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_the_process_that_they_work_for(sign: signal.Signals) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", FAMILY], cwd=BUNDLE, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(3)]
    parent.send_signal(sign)
    parent.wait(10)
    waited = time.monotonic()
    while any(map(is_running, children)) and time.monotonic() < waited + 10:
        time.sleep(0.02)
    assert not [child for child in children if is_running(child)]
    assert not parent.stdout.read()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
