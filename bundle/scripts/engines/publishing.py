"""Weights of a run put where inference, MONAI Label and federated clients look for the bundle's: into models/."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ignite.engine import Engine, Events

from ..common.atomic_writing import replacing
from ..common.command_line import from_words
from ..common.distributed import is_main_process
from ..common.run_folder import RunFolder

__all__ = ["PublishWeights"]

REPLACED = "replaced"  # folder of the weights that were there before the first run's
logger = logging.getLogger("lightm_unet")


class PublishWeights:
    """After a training, copy its best and last weights, and what is known of them, into a folder of models.

    Comes after SaveCheckpoints. What lay there before the first time is kept in the folder ``replaced``; later ones
    are copies of a run's, which has them still.

    Args:
        output_dir: the run's folder.
        models_dir: the bundle's models/.
        enabled: false leaves it out.
    """

    @from_words
    def __init__(self, output_dir: str, models_dir: str, enabled: bool) -> None:
        self.run, self.models, self.enabled = RunFolder(output_dir), RunFolder(models_dir), enabled

    def attach(self, engine: Engine) -> None:
        if self.enabled:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not is_main_process() or not self.run.best.is_file():
            return
        kept = RunFolder(self.models.path / REPLACED)
        if not kept.path.exists():
            self.models.path.mkdir(parents=True, exist_ok=True)
            for file in filter(Path.is_file, _files(self.models)):
                _copy(file, kept.path / file.name)
        for source, target in zip(_files(self.run), _files(self.models), strict=True):
            if source.is_file():
                _copy(source, target)
            else:
                target.unlink(missing_ok=True)  # of other weights
        logger.info(f"the weights of {self.run.path} are now those in {self.models.path}")


def _files(folder: RunFolder) -> list[Path]:
    return [folder.settings, folder.cases, folder.rules, folder.final, folder.best]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
