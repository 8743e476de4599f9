"""Starts the bundle's commands in forked children of this process, which has imported everything already: a start then
takes a fraction of a second instead of ten.

A command is a list of words as after ``python -m``: ``["scripts.planning", "--dataset_dir", …]``.
"""

from __future__ import annotations

import atexit
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BUNDLE = Path(__file__).parents[2] / "bundle"
TIMED_OUT = 1000
LONGEST = 180.0
# Not needed on a CPU, or dear to import.
_LEFT_OUT = ("triton", "nvrtc", "cuda", "fused.", "mamba_ssm", "demo", "three_phase")
_LIBRARIES = (
    "SimpleITK ignite.handlers matplotlib.figure monai.bundle monai.engines monai.handlers monai.transforms nibabel "
    "numba scipy.ndimage tensorboard tifffile torch torch.utils.tensorboard"
).split()

Setup = Callable[[], None]


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: exit status, minus the signal that ended it, or TIMED_OUT.
        output: everything that it printed.
        seconds: that it took.
    """

    status: int
    output: str
    seconds: float

    @property
    def traced(self) -> bool:
        """Whether it printed a traceback."""
        return "Traceback (most recent call last)" in self.output


def preload() -> None:
    """Import what the commands need. In this process nothing may use torch's or numba's threads: a fork loses them."""
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if str(BUNDLE) not in sys.path:
        sys.path.insert(0, str(BUNDLE))
    for name in _LIBRARIES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    for file in sorted((BUNDLE / "scripts").rglob("*.py")):
        name = ".".join(file.relative_to(BUNDLE).with_suffix("").parts).removesuffix(".__init__")
        if not any(word in name for word in _LEFT_OUT):
            importlib.import_module(name)


def start(command: Sequence[str], log: Path, setup: Setup | None = None, own_group: bool = True) -> int:
    """Fork a child that runs ``python -m`` these words from the bundle's folder, and return its process id.

    Args:
        log: gets what the child prints.
        setup: called in the child before the command, to break something.
        own_group: give the child a process group, in which its own children stay.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        if own_group:
            os.setsid()
        status = _child(list(command), log, setup)
    finally:
        os._exit(status)


def finish(pid: int, log: Path, timeout: float = LONGEST) -> Ended:
    """Wait for the end of a child, and kill what is left of its process group."""
    began = time.monotonic()
    status = wait(pid, timeout)
    kill_group(pid)
    if status is None:
        os.waitpid(pid, 0)
        status = TIMED_OUT
    return Ended(status, read(log), time.monotonic() - began)


def run(command: Sequence[str], log: Path, setup: Setup | None = None, timeout: float = LONGEST) -> Ended:
    """Start a command and wait for its end."""
    log.unlink(missing_ok=True)
    return finish(start(command, log, setup), log, timeout)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status of a child, or minus the signal that ended it; None if it still runs after these seconds."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.003)


def group_members(group: int) -> list[int]:
    """The processes of a group that still run."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(number) == group and state not in "ZX":
            members.append(int(entry.name))
    return members


def kill_group(group: int) -> None:
    """Kill what still runs in a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def read(log: Path) -> str:
    """What was printed so far."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _child(command: list[str], log: Path, setup: Setup | None) -> int:
    """Becomes the command, with its output in a file; returns its exit status."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    open_streams()
    os.chdir(BUNDLE)
    subprocess.Popen = _ForkedProcess  # type: ignore[misc]
    return _become(command, setup)


def open_streams() -> None:
    """Have Python print into what the descriptors 1 and 2 are now."""
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")


def _become(command: list[str], setup: Setup | None = None) -> int:
    """Run a command as its own program would, to its end; returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = sys.__excepthook__
    sys.argv = list(command)
    for name in (command[0], f"{command[0]}.__main__"):
        sys.modules.pop(name, None)  # imported by preload; runpy would warn
    try:
        if setup:
            setup()
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


class _ForkedProcess(subprocess.Popen):
    """A ``python -m …`` that a command starts with ``subprocess`` is forked too; everything else is started."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        words = [str(word) for word in args] if not isinstance(args, (str, bytes)) else []
        if words[:2] != [sys.executable, "-m"]:
            super()._execute_child(args, executable, preexec_fn, *rest)
            return
        environment = rest[3]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            return
        status = 1
        try:
            if preexec_fn:
                preexec_fn()
            if environment is not None:
                os.environ |= {str(key): str(value) for key, value in environment.items()}
            status = _become(words[2:])
        finally:
            os._exit(status)
