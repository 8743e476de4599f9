"""Batches of a loader: the same whatever the number of workers, after a resume, and made ahead for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from patches import case_of
from threads import threads

from scripts.data.augmentation import Augmentation, Cut
from scripts.data.loading import PatchLoader, RandomCases, Sample
from scripts.engines.handlers import PrepareAhead, SeedEachEpoch

AUGMENT = Augmentation([300, 300], [0, 1])  # large enough for sums by several threads
BATCHES = 4


class Cases(torch.utils.data.Dataset):
    """Three cases in memory."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, (3, 310, 320))
        self.cases = [case_of(label, rng.normal(size=(1, 310, 320)).astype(np.float16)) for label in labels]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, sample: Sample) -> Cut:
        return AUGMENT.cut(self.cases[sample.index], np.random.default_rng(sample.key))


def loader_of(num_workers: int = 0, seed: int | str | None = 7, epoch: int = 1, batch: int = 3) -> PatchLoader:
    dataset = Cases()
    sampler = RandomCases(dataset, BATCHES * batch, seed)
    sampler.epoch = epoch
    return PatchLoader(dataset, sampler, batch, AUGMENT, num_workers=num_workers)


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) == BATCHES and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("image", "label")
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads(2):
        yield


def test_the_number_of_workers_changes_nothing(two_threads: None) -> None:
    """Nor do workers that live on, nor the threads of this process: a worker has one."""
    torch.manual_seed(0)
    alone, shared = loader_of(0), loader_of(2)
    first = list(alone)
    assert same(first, list(shared)) and shared.persistent_workers
    for loader in (alone, shared):
        loader.sampler.epoch = 2
    torch.manual_seed(1)
    second = list(alone)
    assert same(second, list(shared)) and not same(first, second)


def test_workers_draw_nothing_from_the_random_numbers_of_training() -> None:
    """They start in the first epoch after a resume, but not in each epoch of an uninterrupted run."""
    torch.manual_seed(0)
    loader = loader_of(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_samples_are_a_function_of_seed_epoch_process_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(seed: int | str | None = 7, epoch: int = 1) -> list[Sample]:
        return list(loader_of(seed=seed, epoch=epoch).sampler)

    base = samples()
    assert base == samples() and len({sample.key for sample in base}) == len(base) == BATCHES * 3
    others = [samples(seed=8), samples(seed=-7), samples(epoch=2), samples(seed="null"), samples(seed=None)]
    monkeypatch.setenv("RANK", "1")
    others.append(samples())
    streams = [np.random.default_rng(sample.key).random() for run in [base, *others] for sample in run]
    assert len(set(streams)) == len(streams)
    assert {sample.index for sample in base} == {0, 1, 2}


def test_no_patch_shares_the_random_numbers_that_chose_the_cases() -> None:
    sampler = RandomCases(range(10**9), 3, seed=1)
    chosen = np.random.default_rng((1, 0, 0)).integers(10**9, size=3).tolist()
    assert [sample.index for sample in sampler] == chosen
    for sample in sampler:
        assert np.random.default_rng(sample.key).integers(10**9) not in chosen


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a GPU's loader does, without one."""
    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(wait_stream=lambda other: None, record_event=lambda: event)
    for name, value in {
        "Stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "current_stream": lambda device: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    with threads(1):  # as a worker has, beside which the batches are held bit by bit
        yield


def for_a_gpu(loader: PatchLoader) -> PatchLoader:
    loader.on_gpu, loader.collate_fn = True, AUGMENT.gather
    return loader


@pytest.mark.parametrize(("num_workers", "seed"), [(0, 3), (2, None)])
def test_batches_are_made_ahead_none_twice_and_none_lost(no_streams: None, num_workers: int, seed: int | None) -> None:
    """Two epochs of a trainer; each batch but an epoch's first is there before it is asked for."""
    loader = for_a_gpu(loader_of(num_workers, seed=5))
    seen: list[dict[str, torch.Tensor]] = []
    events: list[str] = []
    augment_finish = AUGMENT.finish

    def finish(raw: Any, device: torch.device) -> dict[str, torch.Tensor]:
        events.append("finish")
        return augment_finish(raw, device)

    def step(engine: Engine, batch: dict[str, torch.Tensor]) -> None:
        events.append("step")
        seen.append(batch)
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    engine.data_loader = loader
    waits: list[str] = []
    engine.add_event_handler(Events.GET_BATCH_STARTED, lambda: waits.append("start"))
    engine.add_event_handler(Events.GET_BATCH_COMPLETED, lambda: waits.append("end"))
    SeedEachEpoch(seed).attach(engine)
    PrepareAhead().attach(engine)
    loader.augment = SimpleNamespace(finish=finish)  # type: ignore[assignment]
    engine.run(loader, max_epochs=2)
    epoch = ["finish"] + ["step", "finish"] * (BATCHES - 1) + ["step"]
    assert events == 2 * epoch
    assert same(seen[:BATCHES], list(loader_of(seed=5, epoch=1)))
    assert same(seen[BATCHES:], list(loader_of(seed=5, epoch=2)))
    assert waits.count("start") == waits.count("end") and len(waits) > 2 * 2 * BATCHES


def test_nothing_is_made_ahead_for_a_cpu() -> None:
    engine = Engine(lambda engine, batch: engine.fire_event(IterationEvents.BACKWARD_COMPLETED))
    engine.register_events(*IterationEvents)
    engine.data_loader = loader_of()
    PrepareAhead().attach(engine)
    assert not engine.has_event_handler(PrepareAhead.__call__) and not engine._event_handlers.get(
        IterationEvents.BACKWARD_COMPLETED
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_an_epoch_repeats() -> None:
    dataset = Cases()

    def epoch(num_workers: int) -> list[dict[str, torch.Tensor]]:
        sampler = RandomCases(dataset, BATCHES * 3, seed=5)
        loader = PatchLoader(dataset, sampler, 3, AUGMENT, device="cuda", num_workers=num_workers)
        batches = []
        for batch in loader:
            loader.fetch_next()
            loader.prepare_next()
            batches.append({key: value.clone() for key, value in batch.items()})
        return batches

    first = epoch(0)
    assert same(first, epoch(0)) and same(first, epoch(2))
    assert all(value.is_cuda for batch in first for value in batch.values())
