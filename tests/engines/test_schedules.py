"""The learning rate's way over the epochs."""

from __future__ import annotations

import pytest
import torch

from scripts.engines.schedules import polynomial_with_warmup


def rates(epochs: int, warmup: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = polynomial_with_warmup(optimizer, epochs, warmup)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_without_warmup_it_is_pytorchs_polynomial(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs, power=0.9)
    expected = []
    for _ in range(epochs):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(epochs, 0) == pytest.approx(expected)


def test_warmup_rises_in_equal_steps_and_then_falls() -> None:
    plain, warm = rates(100, 0), rates(100, 0.05)
    factors = [a / b for a, b in zip(warm, plain)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert warm[6:] == pytest.approx(plain[6:])


def test_a_trial_of_two_epochs_trains_at_nearly_the_full_rate() -> None:
    assert rates(2, 0.05)[0] > 0.9 * 0.5
