"""Which values the settings of a run may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .command_line import or_none
from .errors import UserError
from .networks.lightm_unet import STEMS
from .networks.scan_order import SCAN_ORDERS

__all__ = ["GROUPS", "RULES", "check_settings"]

GROUPS = 8  # of the network's GroupNorm


class Rule(NamedTuple):
    """What a setting must be.

    Attributes:
        expected: in words that go on from "must be".
        holds: whether a value is that.
    """

    expected: str
    holds: Callable[[Any], bool]


def check_settings(**settings: Any) -> None:
    """Refuse values that a run cannot use, before it reads or writes anything.

    Args:
        settings: value of each setting, as typed or as a config has it; the names are those of ``RULES``.

    Raises:
        UserError: one line for all settings that are wrong, with what each must be.
    """
    wrong = [name for name, value in settings.items() if not RULES[name].holds(value)]
    if wrong:
        raise UserError("; ".join(f"{name} must be {RULES[name].expected}, not {settings[name]}" for name in wrong))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int for Python


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_usable_device(value: Any) -> bool:
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.expected}, or null", lambda value: or_none(value) is None or rule.holds(value))


def _one_of(words: Sequence[str]) -> Rule:
    return Rule(f"one of {', '.join(words)}", lambda value: value in words)


_WHOLE = Rule("a whole number", _is_whole)
_COUNT = Rule("a whole number of 1 or more", lambda value: _is_whole(value) and value >= 1)
_COUNT_OR_ZERO = Rule("a whole number of 0 or more", lambda value: _is_whole(value) and value >= 0)
_POSITIVE = Rule("a number above 0", lambda value: _is_number(value) and value > 0)
_NOT_NEGATIVE = Rule("a number of 0 or more", lambda value: _is_number(value) and value >= 0)
_SHARE = Rule("a number of 0 or more and below 1", lambda value: _is_number(value) and 0 <= value < 1)

RULES = {
    "batch_size": _COUNT,
    "device": Rule(
        "cpu, or cuda or cuda:N for a GPU that torch sees (python -m scripts.doctor lists them)", _is_usable_device
    ),
    "drop_path": _SHARE,
    "epochs": _COUNT,
    "gradient_norm": _POSITIVE,
    "init_filters": Rule(
        f"a multiple of {GROUPS}, the groups of GroupNorm, such as {2 * GROUPS} or {4 * GROUPS}",
        lambda value: _COUNT.holds(value) and value % GROUPS == 0,
    ),
    "iterations_per_epoch": _COUNT,
    "learning_rate": _POSITIVE,
    "limit_cases": _or_null(_COUNT),
    "norm_bias": _NOT_NEGATIVE,
    "num_workers": _COUNT_OR_ZERO,
    "overlap": _SHARE,
    "scan_order": _one_of(SCAN_ORDERS),
    "seed": _or_null(_WHOLE),
    "stem": _one_of(STEMS),
    "sw_batch_size": _COUNT,
    "val_interval": _COUNT,
    "warmup": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
}
