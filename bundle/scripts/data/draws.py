"""Which cases the patches of an epoch come from, and the random numbers of each patch."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

__all__ = ["Draw", "RandomDraws"]


class Draw(int):
    """Index of a case, and the seed of all that is random in the patch that is drawn from it.

    The seed travels with the index, so that a patch is the same whichever process loads it, after whatever others.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> Draw:
        draw = super().__new__(cls, index)
        draw.seed = seed
        return draw

    def __getnewargs__(self) -> tuple[int, int]:  # on its way to a loading process
        return int(self), self.seed


class RandomDraws(Sampler[Draw]):
    """Any case at any time (with replacement), from PyTorch's random numbers.

    Args:
        data_source: the cases.
        num_samples: draws in an epoch.
    """

    def __init__(self, data_source: Sized, num_samples: int) -> None:
        self.data_source = data_source
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Draw]:
        indices = torch.randint(len(self.data_source), (self.num_samples,)).tolist()
        seeds = torch.randint(2**32, (self.num_samples,)).tolist()
        return map(Draw, indices, seeds)
