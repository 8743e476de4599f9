"""An exponential moving average of the weights during training, which is what is validated and saved."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel

from ..errors import UserError

__all__ = ["WeightAverage"]


class WeightAverage:
    """Keep a moving average of the network's weights (Polyak averaging), updated after each iteration.

    Late weights scatter around a better point than any of them, the more so the shorter the training. Over the first
    iterations the average is shorter, ``(1 + n) / (10 + n)`` after n of them where that is less than ``decay``, so
    that it does not hang on to the random weights of the start.

    Args:
        network: the trained network, with or without DistributedDataParallel around it.
        decay: of the average, an iteration; 0 averages nothing, 0.999 means about the last thousand iterations.

    Attributes:
        network: what to validate and save: the averaged network, or without an average the trained one itself.

    Raises:
        UserError: decay is not a number from 0 to below 1.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise UserError(f"weight_average must be a number from 0 (off) to below 1, such as 0.999, not {decay!r}")
        self.decay = float(decay)
        self.trained = getattr(network, "module", network)
        self._average = AveragedModel(self.trained, multi_avg_fn=self._update) if decay else None
        self.network = self._average.module if self._average is not None else self.trained

    def attach(self, engine: Engine) -> None:
        if self._average is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self._average.update_parameters(self.trained)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """For a checkpoint; empty without an average."""
        return self._average.state_dict() if self._average is not None else {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint; one without an average, of a run that had none so far, starts a new one."""
        if self._average is not None and state:
            self._average.load_state_dict(state)

    @torch.no_grad()
    def _update(self, average: list[torch.Tensor], trained: list[torch.Tensor], on_gpu: torch.Tensor) -> None:
        updates = int(self._average.n_averaged)  # on the CPU: the argument would make the host wait for the GPU
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(average, trained, 1 - decay)
