"""A campaign that breaks the bundle's commands on purpose, and one table of what came of it.

    python -m tests.torture          from the repository, or ``make torture TIME=seconds SEED=number OUT=folder``

Its parts, each a module of this package:

    flips        single bits flipped in images, weights and prepared cases: what is read otherwise must be noticed
    many_images  up to 2,000 pictures through one inference: memory stays flat, all are written
    power_loss   the disk as it was when the power went, mounted again: everything goes on (root only)
    bad_inputs   options, images and data sets that cannot be used: one line each, nothing harmed
    faults       full and read-only disks, memory, broken files, killed workers: one line each, no broken file
    kills        SIGKILL, SIGTERM and SIGINT at random moments and at every event on the disk: the same command again
                 ends with the same result, and nothing is left over

They share four more: ``server`` starts a command in a forked child within a fraction of a second, ``samples`` writes
tiny data sets and the words of each command, ``ground`` is the trained run that all begin with, ``whole`` tells whole
files from broken ones. ``crash_points`` makes a child die in the midst of something, ``refusals`` judges how a command
says no.

Environment variables: TIME, seconds for everything (300 by default; with 3600 more than 400 kills); SEED, of all random
choices, printed; OUT, where results.jsonl (each trial), rows.jsonl and table.txt go (torture_output by default); PARTS,
names of parts, by default all. The exit status is 1 if any row of the table has failures.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from . import bad_inputs, disks, faults, flips, kills, many_images, power_loss, server
from .ground import Ground
from .table import Journal

# Of the whole time; the last part takes what the others leave.
SHARES: dict[str, float] = {
    "flips": 0.04,
    "many_images": 0.05,
    "power_loss": 0.08,
    "bad_inputs": 0.18,
    "faults": 0.2,
    "kills": 1.0,
}
MOST_IMAGES, FEWEST_IMAGES = 2000, 60


def main() -> int:
    """Run the campaign as the environment says; returns the exit status."""
    began, seconds = time.monotonic(), float(os.environ.get("TIME") or 300)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10_000))
    out = Path(os.environ.get("OUT") or "torture_output").absolute()
    wanted = (os.environ.get("PARTS") or " ".join(SHARES)).replace(",", " ").split()
    if unknown := set(wanted) - set(SHARES):
        print(f"PARTS: there is no {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    journal = Journal(out)
    print(f"SEED={seed} TIME={seconds:g} OUT={out}", flush=True)
    server.preload()
    try:
        with _workplace() as folder:
            ground = Ground(folder)
            for name in wanted:
                share = seconds * SHARES[name] if name != wanted[-1] else seconds
                until = min(time.monotonic() + share, began + seconds)
                print(f"{name}, until {until - began:.0f} s of {seconds:g} s", flush=True)
                _part(name, seconds)(ground, journal, random.Random(seed), until)
    finally:
        print("\n" + journal.end(), flush=True)
    print(f"SEED={seed}, {time.monotonic() - began:.0f} s; each trial: {out / 'results.jsonl'}")
    return int(any(row.failures for row in journal.rows))


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for everything: in memory where mounting is allowed, since flushing thousands of files takes long."""
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        with disks.small_disk(folder, "4g") if disks.why_not() is None else nullcontext():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(name: str, seconds: float) -> Callable[[Ground, Journal, random.Random, float], None]:
    if name != "many_images":
        modules = {"flips": flips, "power_loss": power_loss, "bad_inputs": bad_inputs, "faults": faults, "kills": kills}
        return modules[name].run
    count = int(min(MOST_IMAGES, max(FEWEST_IMAGES, seconds)))
    return lambda ground, journal, rng, until: many_images.run(ground, journal, rng, count)


if __name__ == "__main__":
    sys.exit(main())
