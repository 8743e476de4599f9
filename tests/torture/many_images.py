"""Many small images through one inference: all are written, broken ones are named, memory and open files stay flat."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import NamedTuple

from . import samples, server
from .ground import Ground
from .table import Journal

BROKEN_EACH = 50
GROWTH_MIB = 60  # that memory may grow from a quarter of the way to the end


class Sample(NamedTuple):
    """A process at one moment: predictions written, MiB in memory, open files."""

    written: int
    memory: int
    files: int


def run(ground: Ground, journal: Journal, rng: random.Random, count: int) -> None:
    """Predict ``count`` pictures of which every fiftieth is broken."""
    row = journal.row("many images", f"{count} pictures")
    folder = ground.empty("many")
    dataset = samples.write_pictures(folder / "data", count, rng.randrange(1000), (24, 24))
    images, out = sorted((dataset / "imagesTr").iterdir()), folder / "out"
    broken = images[BROKEN_EACH // 2 :: BROKEN_EACH]
    for image in broken:
        image.write_bytes(image.read_bytes()[:100])
    weights = ground.picture_run / "model.pt"
    pid = server.start(samples.inference(ground.picture_overlay, dataset / "imagesTr", out, weights), ground.log)
    history, began = _watch(pid, out), time.monotonic()
    ended = server.finish(pid, ground.log, 0) if history else server.Ended(1, "", 0)
    problems = {}
    written = len(list(out.glob("*.png")))
    if written != count - len(broken):
        problems["not written"] = f"{written} of {count - len(broken)}; {ended.output[-300:]}"
    unnamed = [image.name for image in broken if image.name not in ended.output]
    if unnamed:
        problems["not named"] = ", ".join(unnamed[:5])
    early = next((sample for sample in history if sample.written >= count // 4), history[0])
    late = history[-1]
    if late.memory - early.memory > GROWTH_MIB:
        problems["memory grows"] = f"{early.memory} MiB at a quarter, {late.memory} MiB at the end"
    if late.files - early.files > 3:
        problems["open files grow"] = f"{early.files} at a quarter, {late.files} at the end"
    journal.trial(row, "inference", problems, memory=[early.memory, late.memory], seconds=time.monotonic() - began)
    row.note = f"{written} written, {early.memory} MiB at a quarter, {late.memory} MiB at the end"


def _watch(pid: int, out: Path) -> list[Sample]:
    """Samples of a process until it ends."""
    history: list[Sample] = []
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{pid}/fd"))
            written = len(list(out.glob("*.png"))) if out.is_dir() else 0
        except (OSError, IndexError, ValueError):
            continue
        history.append(Sample(written, pages * os.sysconf("SC_PAGE_SIZE") >> 20, files))
        time.sleep(0.2)
    return history
