"""Batches of training patches, whose random numbers are a function of seed, epoch, process and the sample's number.

So neither the number of workers nor an interruption changes what a run trains on, and workers live as long as a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Sampler

from ..common.command_line import from_words
from ..common.distributed import rank
from .augmentation import Augmentation, Cut, RawBatch

__all__ = ["PatchLoader", "RandomCases", "Sample", "augmented_batch"]

Batch = dict[str, torch.Tensor]


class Sample(NamedTuple):
    """A case and what the random numbers of its patch are made of (None: any)."""

    index: int
    key: tuple[int, ...] | None


class RandomCases(Sampler[Sample]):
    """Cases drawn with replacement, each with a key of its own.

    ``epoch`` is set before each epoch by the handler SeedEachEpoch.

    Args:
        data_source: the data set.
        num_samples: of an epoch.
        seed: the run's seed, or None for other patches each time.
    """

    @from_words
    def __init__(self, data_source: Sized, num_samples: int, seed: int | None) -> None:
        self.data_source = data_source
        self.num_samples = num_samples
        self.seed: int = np.random.SeedSequence().entropy if seed is None else int(seed) % 2**64
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Sample]:
        key = (self.seed, self.epoch, rank())
        cases = np.random.default_rng(key).integers(len(self.data_source), size=self.num_samples)
        for number, case in enumerate(cases.tolist(), 1):  # NumPy takes a key that ends with 0 for one without it
            yield Sample(case, (*key, number))


class PatchLoader(DataLoader):
    """Augmented batches, {"image": float32, "label": int16}, on the device that trains.

    On a CPU the workers do everything. For a GPU they only read regions of the cases, which are copied to it and
    augmented there, on a stream of its own; ``fetch_next`` and ``prepare_next`` do that for the batch after this one,
    while this one trains.

    Args:
        dataset: hands out a ``Cut`` for a ``Sample``.
        sampler: yields samples.
        batch_size: patches in a batch.
        augment: what cuts and augments.
        device: that trains.
        num_workers: processes that read; 0: this one.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler[Sample],
        batch_size: int,
        augment: Augmentation,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> None:
        self.augment, self.device = augment, torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        super().__init__(
            dataset,
            int(num_workers),
            sampler=sampler,
            batch_size=batch_size,
            collate_fn=augment.gather if self.on_gpu else partial(augmented_batch, augment),
            pin_memory=self.on_gpu,
            persistent_workers=int(num_workers) > 0,
            generator=torch.Generator(),  # the default one would be drawn from where workers start, as after a resume
        )
        self._stream: torch.cuda.Stream | None = None
        self._reset(iter(()))

    def __iter__(self) -> Iterator[Any]:
        return self._on_gpu(super().__iter__()) if self.on_gpu else super().__iter__()

    def fetch_next(self) -> None:
        """Wait for the workers' next raw batch, unless there is one or the epoch has no more."""
        if self._raw is None:
            self._raw = next(self._source, None)

    def prepare_next(self) -> None:
        """Start the augmentation of the batch that was fetched, as soon as the GPU is done with the step before this
        one: a process that is further ahead would pile up batches there."""
        if self._raw is None or self._ready is not None:
            return
        if self._step_before is not None:
            self._step_before.synchronize()
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._ready, self._raw = self.augment.finish(self._raw, self.device), None

    def _reset(self, source: Iterator[RawBatch]) -> None:
        self._source: Iterator[RawBatch] = source
        self._raw: RawBatch | None = None
        self._ready: Batch | None = None
        self._step_before: torch.cuda.Event | None = None

    def _on_gpu(self, source: Iterator[RawBatch]) -> Iterator[Batch]:
        self._reset(source)
        self._stream = self._stream or torch.cuda.Stream(self.device)  # each has memory of its own
        while True:
            self.fetch_next()
            self.prepare_next()
            if self._ready is None:
                return
            batch, self._ready = self._ready, None
            training = torch.cuda.current_stream(self.device)
            training.wait_stream(self._stream)
            for tensor in batch.values():
                tensor.record_stream(training)  # its memory is not the other stream's again before training is done
            self._step_before = training.record_event()
            yield batch


def augmented_batch(augment: Augmentation, cuts: Sequence[Cut]) -> Batch:
    """What a worker makes for a CPU."""
    with _one_thread():
        return augment.finish(augment.gather(cuts), torch.device("cpu"))


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker, so that sums have the same order in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
