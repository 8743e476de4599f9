"""Scores of every case of an evaluation, written as a table and as a summary."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import decollate_batch

from ..common.command_line import from_words
from ..common.distributed import gather_objects, is_main_process
from ..common.errors import UserError, first_few
from ..common.run_folder import ScoresFolder
from ..data.layouts import case_files
from ..images.files import case_name, first_file
from ..images.outputs import check_output_folder, open_folder, refuse_foreign
from ..images.pairs import physical_spacing
from ..metrics import case_scores, format_summary, summarize, write_csv, write_json
from .ensemble import checkpoint_paths
from .prediction import check_outputs, outputs_of
from .provenance import predicted_cases
from .weights import weights_digest

__all__ = ["SaveScores", "check_evaluation_dir"]

logger = logging.getLogger("lightm_unet")


def check_evaluation_dir(
    evaluation_dir: str, cases: Iterable[Mapping[str, Any]], predictions_dir: str | None = None
) -> None:
    """Refuse folders where an evaluation would lose something: see images/outputs.py; files of the same names that no
    evaluation wrote; and scores of cases that this evaluation leaves out, as one with limit_cases does: metrics.csv and
    metrics.json would lose them, and their predictions would stay among the new ones. The same cases, and more, may be
    evaluated again. The folders are made.

    Args:
        cases: those this process evaluates, [{"name", "image": path or paths, "label": path}, …].
        predictions_dir: where the predictions go.

    Raises:
        UserError: says what would be lost, with the number of scores and their cases.
    """
    cases = [{**case, "name": case.get("name") or case_name(first_file(case["image"]))} for case in cases]
    everything = gather_objects(cases)
    inputs = [file for case in everything for file in case_files(case)]
    folder = ScoresFolder(check_output_folder(evaluation_dir, "--evaluation_dir", inputs))
    scored = _scored_cases(folder.metrics)
    left_out = sorted(scored.difference(case["name"] for case in everything))
    if left_out:
        raise UserError(
            f"{evaluation_dir} holds scores of {len(left_out)} case(s) that this evaluation leaves out "
            f"({first_few(left_out)}) and that would be lost: give another --evaluation_dir, or move it away"
        )
    if not scored and is_main_process():
        tables = [] if _is_table(folder.table) else [folder.table]
        refuse_foreign([*tables, folder.metrics], "--evaluation_dir")
    if predictions_dir is not None:
        predictions = check_output_folder(predictions_dir, "--predictions_dir", inputs)
        check_outputs(everything, predictions)
        known = predicted_cases(predictions)
        others = [case for case in cases if case["name"] not in known]
        refuse_foreign([file for case in others for file in outputs_of(case, predictions)], "--predictions_dir")
        open_folder(predictions, "--predictions_dir")
    open_folder(folder.path, "--evaluation_dir")


def _is_table(metrics: Path) -> bool:
    """Whether a metrics.csv is an evaluation's, as one leaves it that is killed before its metrics.json."""
    try:
        with metrics.open("rb") as file:
            return file.read(11) == b"case,class,"
    except OSError:
        return False


def _scored_cases(metrics: Path) -> set[str]:
    try:
        return {row["case"] for row in json.loads(metrics.read_text(encoding="utf-8"))["per_case"]}
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return set()


class SaveScores:
    """Score each case on its original grid; write metrics.csv (a row per case and class) and metrics.json.

    Works with several processes: their rows are gathered and the main process writes. It also has the mean Dice of each
    class in the engine's metrics, for MONAI's trackers.

    Args:
        output_dir: where the two files go.
        labels: name -> value of the foreground classes.
        regions: name -> names of the labels whose union is scored too.
        ignore_label: value of voxels that are left out, or None.
        settings: what the scores depend on, kept in metrics.json, so that cross-validation knows them again.
        checkpoint: file of weights, or several, whose digests are kept likewise.
    """

    @from_words
    def __init__(
        self,
        output_dir: str,
        labels: Mapping[str, int],
        regions: Mapping[str, Sequence[str]] | None = None,
        ignore_label: int | None = None,
        settings: Mapping[str, Any] | None = None,
        checkpoint: str | Sequence[str] | None = None,
    ) -> None:
        self.folder = ScoresFolder(output_dir)
        self.labels = dict(labels)
        self.regions = dict(regions or {})
        self.ignore_label = ignore_label
        self.settings = dict(settings or {})
        self.checkpoints = checkpoint_paths(checkpoint) if checkpoint else []
        self.weights: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.rows = []
        self.weights = list(map(weights_digest, self.checkpoints))  # now, since a training may replace them meanwhile
        self.folder.path.mkdir(parents=True, exist_ok=True)

    def _score(self, engine: Engine) -> None:
        outputs, batches = (
            items if isinstance(items, list) else decollate_batch(items)
            for items in (engine.state.output, engine.state.batch)
        )
        for item, batch in zip(outputs, batches, strict=True):
            file = str(item["image"].meta["filename_or_obj"])
            name = batch.get("name") or case_name(file)
            prediction, label = (item[key][0].cpu().numpy() for key in ("pred", "label"))
            scores = case_scores(
                prediction, label, self.labels, physical_spacing(item["label"]), self.regions, self.ignore_label
            )
            self.rows += [{"case": name, "class": group, **values, "file": file} for group, values in scores.items()]

    def _finish(self, engine: Engine) -> None:
        rows = sorted(gather_objects(self.rows), key=lambda row: row["case"])
        if not is_main_process():
            return
        summary, cases = summarize(rows), len({row["case"] for row in rows})
        means = {f"dice_{name}": scores["dice"]["mean"] for name, scores in summary.items()}
        engine.state.metrics |= {name: mean for name, mean in means.items() if not math.isnan(mean)}
        write_csv(self.folder.table, rows)
        content = {
            "settings": self.settings,
            "weights": self.weights,
            "cases": cases,
            "classes": summary,
            "per_case": rows,
        }
        write_json(self.folder.metrics, content)
        logger.info(f"{format_summary(cases, summary)}\nwritten: {self.folder.table}, {self.folder.metrics.name}")
