"""The names of what runs leave on the disk: the one place that spells them, for every command that writes or reads it.

The configs say some of them again (``checkpoint``, ``evaluation_dir``, ``predictions_dir``, the charts' ``log_dir``),
since these are values that a user may change.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PREDICTIONS", "SUMMARY", "FinishedFolder", "RunFolder", "ScoresFolder"]

PREDICTIONS = "predictions.json"  # in any folder of predictions: which model made them, see engines/provenance.py
SUMMARY = "summary.json"  # in a report's folder: every number of it


class RunFolder:
    """The files of one training, and what lies beside a file of weights that was copied elsewhere.

    ``RunFolder("output/fold_0").best`` is ``output/fold_0/model.pt``. Nothing is read or made.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint.pt"  # all that a resumed run needs, after every epoch
        self.best = self.path / "model.pt"  # the weights of the best epoch so far
        self.final = self.path / "model_final.pt"  # the last weights: the run has come to its end
        self.settings = self.path / "settings.json"  # what a resumed run, or inference, must share with this one
        self.cases = self.path / "cases.json"  # what it trains on and holds out
        self.rules = self.path / "postprocessing.json"  # learned for these weights, if any were
        self.log = self.path / "training.log"  # for people; its lock says that the run goes on
        self.epochs = self.path / "log.jsonl"  # for programs: a line an epoch
        self.tensorboard = self.path / "tensorboard"
        self.evaluation = ScoresFolder(self.path / "evaluation")

    @classmethod
    def of(cls, weights: str | Path) -> RunFolder:
        """The folder that a file of weights lies in."""
        return cls(Path(weights).parent)


class ScoresFolder:
    """What an evaluation, or a whole cross-validation, leaves: scores and the predictions that they are of.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.json"  # every score, the summary and what they depend on
        self.table = self.path / "metrics.csv"  # a row a case and class
        self.predictions = self.path / "predictions"


class FinishedFolder:
    """What finishing a task leaves (python -m scripts.finish).

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.record = self.path / "finish.json"  # what everything here was made from, so that it is known again
        self.held_out = self.path / "held_out"  # a ScoresFolder for each configuration
        self.rules = self.path / "postprocessing.json"  # learned from held_out
        self.configuration = self.path / "configuration.json"  # what inference has to be told to predict the same
        self.predictions = self.path / "predictions"  # as the networks made them
        self.postprocessed = self.path / "postprocessed"  # cleaned by the rules
        self.report = self.path / "report"
        self.summary = self.path / SUMMARY
