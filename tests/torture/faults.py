"""Faults of machine and files: each has to end in one line, or in the right answer, and with no broken file."""

from __future__ import annotations

import random
import time

from . import disks, faulty_files, faulty_machine, refusals
from .ground import Ground
from .table import Journal

SHORT = 60  # seconds: what a machine's load decides is for longer campaigns


def run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Faults of the machine, then those of files."""
    seconds = until - time.monotonic()
    half = until - seconds / 2
    row = journal.row("faults", "machine")
    refusals.run_all(faulty_machine.scenarios(ground, starving=seconds > SHORT), ground, journal, row, rng, half)
    if reason := disks.why_not():
        row.note += f" full disks skipped: {reason}"
    row = journal.row("faults", "files")
    refusals.run_all(faulty_files.scenarios(ground), ground, journal, row, rng, until)
