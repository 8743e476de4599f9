"""Cuts the power: a command writes into an ext4 file system of its own, and at a random moment its device is copied as
it is, without what the system still keeps in memory. The copy is mounted, which replays its journal, as after a reboot.

Before that, in some trials the first half of the work has reached the disk, and in some another program flushes a file
of its own: that brings the names of all files to the disk, but of files that nobody flushed not what they hold.

On the copy everything in place has to be whole, and the same command has to go on to the result of an undisturbed run.
Needs root and a loop device; where mounting is not allowed, the row says so.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

from . import disks, kills, server
from .ground import Ground
from .table import Journal

SIZE = 96 << 20
NAMES = ("training", "preparation", "inference", "evaluation")


def run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Cut the power at random moments, and after the end, of each command in turn until the time is up."""
    row = journal.row("power loss", "ext4")
    if reason := disks.why_not():
        row.note = f"skipped: {reason}"
        return
    subjects = [subject for subject in kills.subjects(ground) if subject.name in NAMES]
    number = 0
    while number == 0 or time.monotonic() < until:
        subject, at_end = subjects[number % len(subjects)], number % 3 == 2
        if not subject.wanted:
            kills.measure(subject, ground, rng)
        delay = None if at_end else rng.uniform(0.3, 1.2) * subject.seconds
        name = f"{subject.name} {'at its end' if at_end else f'after {delay:.2f} s'}"
        journal.trial(row, name, _trial(subject, ground, delay, synced=rng.random() < 0.3, flushed=rng.random() < 0.6))
        number += 1


def _trial(subject: kills.Subject, ground: Ground, delay: float | None, synced: bool, flushed: bool) -> dict[str, str]:
    """One power cut; what is wrong afterwards. ``synced``: the first half of the work had reached the disk;
    ``flushed``: another program flushed a file right before."""
    folder = ground.empty("power")
    image, cut = folder / "disk", folder / "cut"
    disks.new_image(image, SIZE)
    with disks.mounted(image, folder / "before") as disk:
        work = disk / "work"
        work.mkdir()
        subject.prepare(work)
        disks.system("sync", "-f", str(disk))
        pid = server.start(subject.command(work), folder / "log")
        ended = _wait(pid, delay, disk if synced else None)
        if flushed:
            _flush_a_file(disk / "neighbour")
        shutil.copyfile(image, cut)  # now the lights go out
        server.kill_group(pid)
        if not ended:
            server.wait(pid, 10)
    with disks.mounted(cut, folder / "after") as disk:
        return kills.judge(subject, disk / "work", ground)


def _wait(pid: int, delay: float | None, sync: Path | None) -> bool:
    """Let the command run for a time, with a sync of the disk half way, and stop it; returns whether it ended."""
    if delay is None:
        return server.wait(pid, server.LONGEST) is not None
    if sync:
        if server.wait(pid, delay / 2) is not None:
            return True
        os.killpg(pid, signal.SIGSTOP)
        disks.system("sync", "-f", str(sync))
        os.killpg(pid, signal.SIGCONT)
    if server.wait(pid, delay / 2 if sync else delay) is not None:
        return True
    os.killpg(pid, signal.SIGSTOP)
    return False


def _flush_a_file(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b"something")
        stream.flush()
        os.fsync(stream.fileno())
