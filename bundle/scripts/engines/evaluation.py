"""Scores of every case of an evaluation, written as a table and as a summary."""

from __future__ import annotations

import csv
import json
import logging
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor, decollate_batch

from ..data.datalist import case_name
from ..data.images import replacing
from ..distributed import gather_objects, is_main_process
from ..errors import UserError
from ..metrics import METRICS, case_scores

__all__ = ["SaveScores"]

logger = logging.getLogger("lightm_unet")


class SaveScores:
    """Score each case on its original grid; write metrics.csv (a row per case and class) and metrics.json.

    Works with several processes: their rows are gathered and the main process writes.

    Args:
        output_dir: where the two files go.
        labels: name -> value of the foreground classes.
    """

    def __init__(self, output_dir: str, labels: Mapping[str, int]) -> None:
        self.output_dir = Path(output_dir)
        self.labels = dict(labels)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows = []
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.output_dir}: {error.strerror}; give another --output_dir"
            ) from error

    def _score(self, engine: Engine) -> None:
        items = engine.state.output if isinstance(engine.state.output, list) else decollate_batch(engine.state.output)
        for item in items:
            path = item["image"].meta["filename_or_obj"]
            prediction, label = item["pred"][0].cpu(), item["label"][0].cpu()
            scores = case_scores(prediction, label, self.labels, voxel_size(item["label"]))
            self.rows += [
                {"case": case_name(path), "file": str(path), "class": name, **values} for name, values in scores.items()
            ]

    def _finish(self, engine: Engine) -> None:
        rows = sorted(gather_objects(self.rows), key=lambda row: row["case"])
        if not is_main_process():
            return
        summary = {name: _summary([row for row in rows if row["class"] == name]) for name in self.labels}
        report = {"cases": len({row["case"] for row in rows}), "classes": summary, "per_case": rows}
        with replacing(self.output_dir / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["case", "class", *METRICS, "file"])
            writer.writeheader()
            writer.writerows(rows)
        with replacing(self.output_dir / "metrics.json") as temporary:
            temporary.write_text(json.dumps(_nan_to_none(report), indent=2) + "\n")
        logger.info(_table(report["cases"], summary) + f"\nwritten: {self.output_dir}/metrics.csv, metrics.json")


def voxel_size(image: torch.Tensor) -> list[float]:
    """Voxel size along each axis in mm; 1 (pixels) for pictures, which have none."""
    dims = image.ndim - 1
    if not isinstance(image, MetaTensor):
        return [1.0] * dims
    return np.linalg.norm(np.asarray(image.affine)[:3, :dims], axis=0).tolist()


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | int]]:
    """Mean, SD and number of the defined values of each metric."""
    result = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if not math.isnan(row[metric])]
        result[metric] = {
            "mean": statistics.fmean(values) if values else math.nan,
            "sd": statistics.stdev(values) if len(values) > 1 else math.nan,
            "defined": len(values),
        }
    return result


def _table(cases: int, summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    width = max(map(len, summary)) + 2
    lines = [f"{cases} cases, mean ± SD", " " * width + "".join(f"{metric:>20}" for metric in METRICS)]
    for name, metrics in summary.items():
        cells = (f"{m['mean']:.4f} ± {m['sd']:.4f}" for m in metrics.values())
        lines.append(name.ljust(width) + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _nan_to_none(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
