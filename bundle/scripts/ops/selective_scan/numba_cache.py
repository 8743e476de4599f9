"""Functions compiled by Numba and kept on disk, where a fault of the disk costs time and no more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache

__all__ = ["compiled"]

_warned: list[str] = []


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled on first call, and kept on disk where Numba finds a place that it may write.

    Where the disk is full or cannot be written, it is compiled in each process, and one warning says so; a broken
    file in the cache is replaced.

    Numba looks at the date of the function's file only: after a change of numba_lanes, delete the __pycache__
    beside it.
    """
    dispatcher = njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)
    try:
        dispatcher._cache = _Cache(function)  # what njit(cache=True) sets, which lets each error of the disk through
    except RuntimeError as error:
        _warn(str(error))
    return dispatcher


class _Cache(FunctionCache):
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever it is that a broken file unpickles to
            self._try(self.flush)  # else save_overload would stumble over the same file
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        self._try(partial(super().save_overload, sig, data))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:
            self.disable()
            _warn(f"{self.cache_path}: {error}")


def _warn(reason: str) -> None:
    """Once: all functions share the disk, and its fault."""
    if _warned:
        return
    _warned.append(reason)
    warnings.warn(
        f"Numba compiles the selective scan anew in each process, which takes seconds: {reason}. "
        "Set NUMBA_CACHE_DIR to a folder that can be written.",
        RuntimeWarning,
        stacklevel=3,
    )
