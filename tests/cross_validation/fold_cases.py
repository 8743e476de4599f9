"""Folds as their runs leave them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from generators import write_image

from scripts.cross_validation.folds import EVALUATION, Fold
from scripts.engines.provenance import Run, write_provenance
from scripts.engines.weights import weights_digest
from scripts.metrics import METRICS

TRAIN = Path(EVALUATION).with_name("train.json")


def short_run(folder: Path) -> None:
    """A fold that was trained for two epochs and evaluated."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    for name in ("model.pt", "checkpoint.pt", "model_final.pt"):
        (folder / name).touch()
    write_scores(folder)


def write_scores(folder: Path, rows: Sequence[dict[str, Any]] = (), **settings: Any) -> None:
    """metrics.json of the weights that are there."""
    content = {"settings": settings, "weights": [weights_digest(folder / "model.pt")], "per_case": list(rows)}
    (folder / "evaluation/metrics.json").write_text(json.dumps(content))


def finished(folder: Path, number: int, scores: dict[str, float | None], ending: str = ".nii.gz") -> Fold:
    """A fold as evaluation leaves it, with a file for each case's prediction."""
    fold = Fold(number, folder / f"fold_{number}", epochs=1)
    (fold.evaluation.path / "predictions").mkdir(parents=True)
    (fold.folder / "model.pt").touch()
    others = dict.fromkeys(METRICS, 1.0)
    rows = [{"case": case, "class": "a", **others, "dice": dice} for case, dice in scores.items()]
    write_scores(fold.folder, rows)
    for case in scores:
        write_image(fold.evaluation.path / "predictions" / (case + ending), np.ones((1, 2, 3, 4), np.uint8))
    write_provenance(fold.evaluation.path / "predictions", Run("model.pt", number, [], sorted(scores)))
    return fold
