"""Bad inputs: option values, images and descriptions of data sets that cannot be used."""

from __future__ import annotations

import random
import time

from . import bad_datasets, bad_options, refusals
from .ground import Ground
from .table import Journal


def run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Every table in turn, each with its share of the time."""
    tables = {
        "options": bad_options.scenarios,
        "images": bad_datasets.image_scenarios,
        "dataset.json": bad_datasets.description_scenarios,
    }
    for left, (name, scenarios) in zip(range(len(tables), 0, -1), tables.items()):
        share = (until - time.monotonic()) / left
        row = journal.row("bad inputs", name)
        refusals.run_all(
            scenarios(ground), ground, journal, row, rng, time.monotonic() + share * (1.5 if left > 1 else 1)
        )
