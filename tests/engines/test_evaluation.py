"""An evaluation keeps the scores of an earlier one that it would not write anew."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from ignite.engine import Engine, Events

from scripts.engines.checkpoints import weights_digest
from scripts.engines.evaluation import SaveScores, check_evaluation_dir, evaluate
from scripts.errors import UserError


def cases(names: str) -> list[dict[str, str]]:
    return [{"name": name, "image": f"{name}.nii.gz"} for name in names]


def test_scores_of_cases_that_are_left_out_are_kept(tmp_path: Path) -> None:
    check_evaluation_dir(str(tmp_path), cases("a"))
    rows = [{"case": case, "class": "lung", "dice": 1.0} for case in "abc"]
    (tmp_path / "metrics.json").write_text(json.dumps({"per_case": rows}))
    check_evaluation_dir(str(tmp_path), cases("abc"))
    check_evaluation_dir(str(tmp_path), cases("abcd"))
    with pytest.raises(UserError, match=r"scores of 2 case\(s\).*\(b, c\).*another --evaluation_dir"):
        check_evaluation_dir(str(tmp_path), cases("a"))  # as --limit_cases 1 does


def test_scores_name_the_weights_that_made_them(tmp_path: Path) -> None:
    """As they were when the evaluation began: a training may replace them meanwhile."""
    weights = tmp_path / "model.pt"
    weights.write_text("first")
    digest = weights_digest(weights)
    scores = SaveScores(str(tmp_path / "evaluation"), {"lung": 1}, checkpoint=str(weights))
    engine = Engine(lambda *_: weights.write_text("second"))
    engine.add_event_handler(Events.STARTED, scores._start)
    engine.add_event_handler(Events.COMPLETED, scores._finish)
    engine.run([0])
    assert json.loads((tmp_path / "evaluation/metrics.json").read_text())["weights"] == [digest]
    assert digest != weights_digest(weights)


def test_an_evaluation_runs_after_one_that_failed() -> None:
    def process(engine: Engine, batch: int) -> None:
        ran.append(batch)
        if len(ran) == 1:
            raise MemoryError

    ran: list[int] = []
    engine = Engine(process)
    engine.run = partial(engine.run, [7], max_epochs=1)  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        evaluate(engine)  # type: ignore[arg-type]
    engine.state.epoch = 0
    evaluate(engine)  # type: ignore[arg-type]
    assert ran == [7, 7]
