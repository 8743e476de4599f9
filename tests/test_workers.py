"""Work in several processes."""

from __future__ import annotations

import os

import pytest

from scripts.errors import UserError
from scripts.workers import map_cases


def square(number: int) -> int:
    if number == 3:
        raise UserError("three is broken")
    if number == 4:
        raise RuntimeError("caused by") from UserError("four is broken")
    return number * number


def die(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_are_tried_and_all_problems_listed(workers: int) -> None:
    assert list(map_cases(square, [0, 1, 2], "", workers)) == [0, 1, 4]
    results = []
    with pytest.raises(UserError, match=r"(?s)2 of 5 cases cannot be used:.*three is broken.*four is broken"):
        results.extend(map_cases(square, [1, 3, 4, 5, 6], "", workers))
    assert list(map_cases(square, [], "", workers)) == []


def test_a_killed_worker_is_an_error_not_a_hang() -> None:
    with pytest.raises(UserError, match="fewer --workers"):
        list(map_cases(die, [1, 2, 3], "", 2))
