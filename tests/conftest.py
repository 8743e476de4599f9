"""Puts the bundle on sys.path, as `python -m monai.bundle` does, and finds the optional shared data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BUNDLE = REPOSITORY / "bundle"
sys.path.insert(0, str(BUNDLE))


@pytest.fixture
def shared_data() -> Path:
    """Folder with the real data sets, from LIGHTM_UNET_DATA."""
    if "LIGHTM_UNET_DATA" not in os.environ:
        pytest.skip("LIGHTM_UNET_DATA is not set")
    return Path(os.environ["LIGHTM_UNET_DATA"])
