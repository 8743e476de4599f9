"""Tests that need an NVIDIA GPU; the fixture `runs` is in conftest.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

HAS_GPU = torch.cuda.is_available()


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs a GPU; it is skipped where its backend, if it takes one, cannot run."""
    return pytest.mark.gpu(pytest.mark.usefixtures("runs")(test))
