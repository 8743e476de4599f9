"""What the server that forks the integrity check's workers imports first, before PyTorch, which takes seconds: it and
its workers then end at once when the process that started it does, killed too. On Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

__all__ = ["ending_with_this_process"]

_STARTER = "LIGHTM_UNET_FORK_SERVER_OF"  # environment variable: the process that starts the server
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in Linux's sys/prctl.h


@contextlib.contextmanager
def ending_with_this_process() -> Iterator[None]:
    """Inside, a server that is started and imports this module ends with this process."""
    os.environ[_STARTER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_STARTER, None)


def _end_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not Linux
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)


# Where the server does not find this module, its workers import it, whose parent the server is.
if os.environ.pop(_STARTER, "") == str(os.getppid()):
    _end_with(os.getppid())
    server = os.getpid()
    os.register_at_fork(after_in_child=lambda: _end_with(server))
