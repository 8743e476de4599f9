"""Several checkpoints that predict together, with the memory of one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer

from ..common.errors import UserError
from ..data.transforms import Preparation
from ..inference.logits import LazyLogits
from .inferers import Network, SlidingWindow
from .weights import check_preparation, load_weights

__all__ = ["Ensemble", "checkpoint_paths", "load_checkpoints", "with_ensemble"]


class Ensemble(Inferer):
    """Average the logits of several checkpoints, which take turns in one network.

    Args:
        inferer: does the inference with each, for example a sliding window with flips.
        checkpoints: files of weights; all must fit the network.
    """

    def __init__(self, inferer: SlidingWindow, checkpoints: Sequence[str | Path]) -> None:
        super().__init__()
        self.inferer = inferer
        self.checkpoints = list(checkpoints)

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Inputs (batch, channels, *spatial) to mean logits (batch, classes, *spatial), float32 or more."""
        return self.inferer.whole(inputs, network, args, kwargs, self._members(network))

    def lazily(
        self, image: torch.Tensor, network: torch.nn.Module, call: Network | None = None, progress: bool = False
    ) -> LazyLogits:
        """The mean logits of one image (channels, *spatial), computed when they are taken; see SlidingWindow."""
        return self.inferer.lazily(image, network, call, progress, self._members(network))

    def _members(self, network: torch.nn.Module) -> list[Callable[[], None]]:
        """What gives the network the weights of each checkpoint: from the file at first, for each image anew."""
        known: dict[str | Path, dict[str, torch.Tensor]] = {}

        def prepare(checkpoint: str | Path) -> None:
            if checkpoint in known:
                network.load_state_dict(known[checkpoint])
            else:
                load_weights(network, checkpoint)
                known[checkpoint] = {name: value.clone() for name, value in network.state_dict().items()}
            torch.clear_autocast_cache()  # which would go on with the other one's weights in half precision

        return [partial(prepare, checkpoint) for checkpoint in self.checkpoints]


def with_ensemble(inferer: SlidingWindow, checkpoint: str | Sequence[str]) -> Inferer:
    """``inferer`` itself, or an Ensemble around it if ``checkpoint`` names several files."""
    paths = checkpoint_paths(checkpoint)
    return Ensemble(inferer, paths) if len(paths) > 1 else inferer


def load_checkpoints(
    network: torch.nn.Module,
    checkpoint: str | Sequence[str],
    preparation: Preparation | None = None,
    strides: Sequence[Sequence[int]] | str | None = None,
) -> None:
    """Load a file of weights; of several, try each, so that a wrong one is found before the first case.

    Args:
        preparation, strides: how images are prepared, classes named, and the network pools; see check_preparation.

    Raises:
        UserError: a file is missing or does not fit (see load_weights), or is named twice.
    """
    for path in reversed(checkpoint_paths(checkpoint)):
        load_weights(network, path)
        if preparation is not None:
            of_images = {name: fact for name, fact in preparation.facts().items() if name != "ignore_label"}
            check_preparation(path, {**of_images, "strides": strides})


def checkpoint_paths(checkpoint: str | Path | Sequence[str | Path]) -> list[str]:
    """One file, a list of files, or such a list as typed on a command line: "[a.pt,b.pt]".

    Raises:
        UserError: there is none, or one is named twice.
    """
    if isinstance(checkpoint, str) and checkpoint.strip().startswith(("[", "(")):
        checkpoint = [part.strip(" '\"") for part in checkpoint.strip(" []()").split(",")]
    parts = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    paths = [str(part) for part in parts if str(part)]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if not paths or twice:
        problem = f"{twice[0]} twice" if twice else "no file"
        raise UserError(f"--checkpoint names {problem}: give each file of weights once")
    return paths
