"""The weights that an evaluator predicts with, whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

from ..data.transforms import Preparation
from .ensemble import checkpoint_paths, load_checkpoints

__all__ = ["LoadCheckpoints"]


class LoadCheckpoints:
    """Loads files of weights into a network when the workflow is initialised, and looks again before each run of the
    evaluator: what has changed since is loaded anew, so that no one ever predicts with random weights or with old ones.

    Args:
        network, checkpoint, preparation, strides: see load_checkpoints.

    Example:
        >>> loader = LoadCheckpoints(network, "models/model.pt")
        >>> loader.attach(evaluator)
    """

    def __init__(
        self,
        network: torch.nn.Module,
        checkpoint: str | Sequence[str],
        preparation: Preparation | None = None,
        strides: Sequence[Sequence[int]] | str | None = None,
    ) -> None:
        self.network, self.checkpoint = network, checkpoint
        self.preparation, self.strides = preparation, strides
        self.loaded: list[tuple[str | int, ...]] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self, *_: Engine) -> None:
        """Load the files, unless they are those that were loaded last.

        Raises:
            UserError: see load_checkpoints.
        """
        now = self._stamps()
        if now is None or now != self.loaded:
            load_checkpoints(self.network, self.checkpoint, self.preparation, self.strides)
            self.loaded = now

    def load_if_there(self) -> None:
        """The same where there are files; a federated client, which initialises its evaluation before anything was
        trained, has none yet.

        Raises:
            UserError: a file that is there cannot be used.
        """
        if self._stamps() is not None:
            self.load()

    def _stamps(self) -> list[tuple[str | int, ...]] | None:
        """What tells the files from those that replace them; None where one is missing."""
        try:
            states = [(path, os.stat(path)) for path in checkpoint_paths(self.checkpoint)]
        except OSError:
            return None
        return [(path, state.st_ino, state.st_mtime_ns, state.st_size) for path, state in states]
