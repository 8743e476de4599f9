"""Puts the bundle on sys.path, as `python -m monai.bundle` does, and finds the optional shared data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# Without a GPU the Triton kernels run in Triton's interpreter. It reads this when it is first imported, which torch
# and the bundle do on their own: so before anything else.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).parents[1]
BUNDLE = REPOSITORY / "bundle"
sys.path.insert(0, str(BUNDLE))
sys.path.insert(0, str(REPOSITORY / "tests/helpers"))  # generators, for tests in other folders


@pytest.fixture
def shared_data() -> Path:
    """Folder with the real data sets, from LIGHTM_UNET_DATA."""
    if "LIGHTM_UNET_DATA" not in os.environ:
        pytest.skip("LIGHTM_UNET_DATA is not set")
    return Path(os.environ["LIGHTM_UNET_DATA"])


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> None:
    """Skips a test where the scan's backend that it takes, or any, cannot run on a GPU."""
    from scripts.ops.selective_scan import BackendError, choose_backend

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
        choose_backend("cuda", parameters.get("backend", "auto"))
    except BackendError as error:
        pytest.skip(str(error))
