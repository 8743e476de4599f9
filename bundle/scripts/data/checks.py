"""Reads every case of a run once before it starts, and reports everything that is wrong in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from ..errors import UserError
from .images import LoadCased

__all__ = ["check_cases"]

THREADS = 4


def check_cases(
    cases: Sequence[Mapping[str, str]], spatial_dims: int, in_channels: int, labels: Mapping[str, int]
) -> None:
    """Load each case as the run will.

    Args:
        cases: [{"image": path, "label": path}, …]

    Raises:
        UserError: lists each file that is broken or does not fit, with the reason (see LoadCased).
    """
    load = LoadCased(["image", "label"], spatial_dims, in_channels, labels)

    def problem(case: Mapping[str, str]) -> str | None:
        try:
            load(case)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        results = tqdm(pool.map(problem, cases), "checking cases", len(cases), leave=False, disable=None)
        problems = [result for result in results if result]
    if problems:
        raise UserError(f"{len(problems)} of {len(cases)} cases cannot be used:\n  " + "\n  ".join(problems))
