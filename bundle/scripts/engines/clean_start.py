"""Engines that start anew after a run that raised."""

from __future__ import annotations

from ignite.engine import Engine

__all__ = ["run_clean", "start_clean"]


def start_clean(*engines: Engine) -> None:
    """Have the next ``run()`` of these engines run, whatever came of the last one.

    ignite can interrupt a run and go on with it, for which it keeps a generator. A run that raised leaves it behind,
    spent, and the next ``run()`` then returns at once without a word.
    """
    for engine in engines:
        engine._internal_run_generator = None
        engine._dataloader_iter = None


def run_clean(engine: Engine) -> None:
    """Run an engine that may have raised before."""
    start_clean(engine)
    engine.run()
