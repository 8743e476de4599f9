"""Which values the settings of a run may have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..common.command_line import as_flag, or_none
from ..common.errors import UserError
from ..networks.lightm_unet import GROUPS, STEMS
from ..networks.scan_order import SCAN_ORDERS

__all__ = ["RULES", "check_settings"]


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
        UserError: one line for all settings that are wrong, with what each must be, or that contradict each other.
    """
    wrong = [name for name, value in settings.items() if not RULES[name].holds(value)]
    if wrong:
        raise UserError("; ".join(f"{name} must be {RULES[name].expected}, not {settings[name]}" for name in wrong))
    if contradictions := list(_contradictions(settings)):
        raise UserError("; ".join(contradictions))


def _contradictions(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings of which each by itself could be."""
    known = {name: value for name, value in settings.items() if or_none(value) is not None}
    labels, channels = known.get("labels", {}), known.get("in_channels")
    if {"patch_size", "spatial_dims"} <= known.keys():
        yield from _misfits_of_patch(known["patch_size"], known["spatial_dims"], known.get("strides"))
    if "slice_axis" in known and known.get("spatial_dims") == 3:
        yield "slice_axis is for a network of spatial_dims 2: set it to null"
    if channels and len(known.get("normalization", [None] * channels)) != channels:
        yield f"normalization must name a scheme for each of the {channels} in_channels, not {known['normalization']}"
    if labels and known.get("ignore_label") in labels.values():
        yield f"ignore_label {known['ignore_label']} is the value of a label too: {labels}"
    if labels and (unknown := {name for names in known.get("regions", {}).values() for name in names} - labels.keys()):
        yield f"regions name {', '.join(sorted(unknown))}, which the labels do not have: {', '.join(labels)}"


def _misfits_of_patch(
    patch_size: Sequence[int], spatial_dims: int, strides: Sequence[Sequence[int]] | None
) -> Iterator[str]:
    """Why the network cannot take a patch; without strides it pools three times by 2 along every axis."""
    if len(patch_size) != spatial_dims:
        yield f"patch_size must be {spatial_dims} sizes, such as {[64] * spatial_dims}, not {patch_size}"
    elif strides is not None and any(len(stage) != spatial_dims for stage in strides):
        yield f"strides: each stage needs {spatial_dims} numbers, one per axis, not {strides}"
    else:
        multiples = [8] * spatial_dims if strides is None else [math.prod(axis) for axis in zip(*strides, strict=True)]
        pairs = list(zip(patch_size, multiples, strict=True))
        if any(size % multiple for size, multiple in pairs):
            nearest = [max(multiple, round(size / multiple) * multiple) for size, multiple in pairs]
            what = multiples[0] if len(set(multiples)) == 1 else multiples
            yield f"patch_size {list(patch_size)}: each size must be a multiple of {what}; nearest: {nearest}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # True is an int for Python


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(holds, value))


def _is_size(value: Any) -> bool:
    return _is_list(value, lambda size: _is_whole(size) and size >= 1) and len(value) in (2, 3)


def _is_spacing(value: Any) -> bool:
    return _is_list(value, lambda mm: mm is None or (_is_number(mm) and mm > 0)) and len(value) in (2, 3)


def _are_labels(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    named = all(isinstance(name, str) and _is_whole(number) and number >= 1 for name, number in value.items())
    return named and len(set(value.values())) == len(value)


def _are_regions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_list(names, _is_text) for names in value.values())


def _is_scheme(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _is_text(value)
    numbers = value.get("ct")
    return isinstance(numbers, Mapping) and all(map(_is_number, numbers.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_path(value: Any) -> bool:
    return isinstance(value, Path) or _is_text(value)


def _is_flag(value: Any) -> bool:
    try:
        as_flag(value)
    except UserError:
        return False
    return True


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
_FLAG = Rule("true or false", _is_flag)
_PATH = Rule("the path of a file or folder", _is_path)
_SHARE = Rule("a number of 0 or more and below 1", lambda value: _is_number(value) and 0 <= value < 1)

RULES = {
    "batch_size": _COUNT,
    "cache_dir": _PATH,
    "checkpoint": Rule(
        "a file of weights, or a list of such files",
        lambda value: _is_path(value) or (_is_list(value, _is_path) and len(value) > 0),
    ),
    "conv_stages": Rule("0, 1, 2 or 3", lambda value: _is_whole(value) and 0 <= value <= 3),
    "crop_nonzero": _FLAG,
    "cuda_graph": _FLAG,
    "dataset_dir": _PATH,
    "device": Rule(
        "cpu, or cuda or cuda:N for a GPU that torch sees (python -m scripts.doctor lists them)", _is_usable_device
    ),
    "drop_path": _SHARE,
    "epochs": _COUNT,
    "evaluation_dir": _PATH,
    "fold": Rule(
        "the number of a fold, or all",
        lambda value: value == "all" or _COUNT_OR_ZERO.holds(int(value) if str(value).isdecimal() else value),
    ),
    "gradient_norm": _POSITIVE,
    "ignore_label": _or_null(_COUNT),
    "in_channels": _COUNT,
    "init_filters": Rule(
        f"a multiple of {GROUPS}, the groups of GroupNorm, such as {2 * GROUPS} or {4 * GROUPS}",
        lambda value: _COUNT.holds(value) and value % GROUPS == 0,
    ),
    "input_dir": _or_null(_PATH),
    "iterations_per_epoch": _COUNT,
    "keep_largest": _FLAG,
    "labels": Rule('{"name": value above 0, …}, with another value for each name', _are_labels),
    "learning_rate": _POSITIVE,
    "limit_cases": _or_null(_COUNT),
    "mirror_axes": Rule(
        "a list of axes of the patch, such as [0, 1], or []",
        lambda value: (
            _is_list(value, lambda axis: _is_whole(axis) and 0 <= axis <= 2) and len(set(value)) == len(value)
        ),
    ),
    "name": Rule("a text", _is_text),
    "norm_bias": _NOT_NEGATIVE,
    "normalization": _or_null(
        Rule(
            'a list with a scheme for each channel, such as ["zscore"] or [{"ct": {"lower": …, "upper": …, …}}]',
            lambda value: _is_list(value, _is_scheme) and len(value) > 0,
        )
    ),
    "num_workers": _COUNT_OR_ZERO,
    "output_dir": _PATH,
    "overlap": _SHARE,
    "overwrite": _FLAG,
    "patch_size": Rule("a list of 2 or 3 whole numbers, such as [64, 64, 64]", _is_size),
    "postprocessing_rules": _or_null(Rule("auto, none or the path of a file of rules", _is_path)),
    "predictions_dir": _PATH,
    "pretrained": _or_null(_PATH),
    "recompute_activations": _FLAG,
    "regions": _or_null(Rule('{"name": ["label", …], …}, or {}', _are_regions)),
    "resume": _FLAG,
    "save_probabilities": _FLAG,
    "scan_order": _one_of(SCAN_ORDERS),
    "seed": _or_null(_WHOLE),
    "skip_existing": _FLAG,
    "slice_axis": _or_null(
        Rule("0, 1 or 2, the axis of the slices", lambda value: _is_whole(value) and 0 <= value <= 2)
    ),
    "spacing": _or_null(Rule("a list of 2 or 3 sizes in mm, such as [1, 1, 2.5]", _is_spacing)),
    "spatial_dims": Rule("2 or 3", lambda value: _is_whole(value) and value in (2, 3)),
    "splits": _or_null(_PATH),
    "stem": _one_of(STEMS),
    "strides": _or_null(
        Rule(
            "a list with the strides of each stage, such as [[2, 2, 2], [2, 2, 2], [2, 2, 1]]",
            lambda value: _is_list(value, _is_size) and len(value) > 0,
        )
    ),
    "sw_batch_size": _COUNT,
    "tta": _FLAG,
    "update_models": _FLAG,
    "val_interval": _COUNT,
    "warmup": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
}
