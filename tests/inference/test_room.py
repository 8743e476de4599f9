"""Where the sums of a sliding window are kept."""

from __future__ import annotations

import logging

import pytest
import torch

from scripts.common.errors import UserError
from scripts.inference import room

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 10**9


@pytest.mark.parametrize(
    ("needed", "device", "place", "said"),
    [
        (GB // 2, CPU, CPU, []),
        (3 * GB, CPU, CPU, ["an image takes 3.0 GB of memory of the 20.0 GB that are free on the host"]),
        (3 * GB, GPU, GPU, []),
        (5 * GB, GPU, CPU, ["an image takes 5.0 GB of memory of the 20.0 GB that are free on the host"]),
    ],
)
def test_on_the_gpu_where_it_fits(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    needed: int,
    device: torch.device,
    place: torch.device,
    said: list[str],
) -> None:
    monkeypatch.setattr(room, "_free_on_gpu", lambda device: 8 * GB)
    monkeypatch.setattr(room, "free_memory", lambda: 20 * GB)
    with caplog.at_level(logging.INFO, "lightm_unet"):
        assert room.place_of(needed, "an image", device) == place
    assert caplog.messages == said


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_free_on_gpu", lambda device: 8 * GB)
    monkeypatch.setattr(room, "free_memory", lambda: 4 * GB)
    for device in (CPU, GPU):
        with pytest.raises(UserError, match=r"^an image needs 5\.0 GB of memory, 4\.0 GB are free: [^\n]*$"):
            room.place_of(5 * GB, "an image", device)
    monkeypatch.setattr(room, "free_memory", lambda: None)  # the system does not tell
    assert room.place_of(5 * GB, "an image", CPU) == CPU
