"""Two trained folds of a small task, in 2D and in 3D, made once; and runs that happen in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from finish_cases import Task, run_here
from threads import threads

from scripts.cross_validation import running
from scripts.finish import steps


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Task]:
    """Dimensions -> a task whose folds 0 and 1 are trained and not evaluated; copy them before anything changes."""
    made: dict[int, Task] = {}

    def task(dims: int) -> Task:
        if dims not in made:
            made[dims] = Task(tmp_path_factory.mktemp(f"task_{dims}d"), dims)
            made[dims].write_data()
            made[dims].train(0, 1)
        return made[dims]

    return task


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs of monai.bundle that a command asks for, which are made in this process."""
    started: list[str] = []

    def run(command: list[str], what: str) -> None:
        started.append(command[4])
        run_here(command)

    for module in (running, steps):
        monkeypatch.setattr(module, "run_program", run)
    return started


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny tensors: a second thread only waits, here and in the processes that are started."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with threads(1):
        yield
