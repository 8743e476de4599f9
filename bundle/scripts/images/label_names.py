"""Names and values of labels in a dataset.json, and how messages list values.

MSD writes {"1": "liver"}, nnU-Net {"liver": 1, "organ": [1, 2]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import UserError, first_few

__all__ = ["LARGEST_VALUE", "listed", "read_labels", "undeclared_hint", "values_in"]

IGNORE = "ignore"
LARGEST_VALUE = 2**16 - 1  # tables from values to classes have one entry a value
MOST_LABELS = 1000  # each is an output channel of the network


def listed(values: Sequence[float]) -> str:
    """The first ten label values of a list for a message, 0.99999994 told from 1."""
    return first_few((f"{value:.9g}" for value in values), 10)


def values_in(label_map: np.ndarray) -> np.ndarray:
    """The values of a label map (*spatial), ascending: np.unique with the memory of a slice, and far quicker on the
    small integers that labels nearly always are."""
    if label_map.dtype not in (np.uint8, np.int8, np.uint16, np.int16) or label_map.ndim < 2:
        found = [np.unique(part) for part in label_map] if label_map.ndim > 2 else [np.unique(label_map)]
        return np.unique(np.concatenate(found))
    unsigned = np.dtype(f"u{label_map.dtype.itemsize}")
    present = np.zeros(np.iinfo(unsigned).max + 1, bool)
    for part in label_map.view(unsigned):  # by slices: an index takes eight times the memory of a label
        present[part] = True
    values = np.flatnonzero(present)
    if label_map.dtype.kind == "i":
        values[values > np.iinfo(label_map.dtype).max] -= len(present)
    return np.sort(values)


def undeclared_hint(values: Sequence[float], path: str | Path) -> str:
    """What to do about a label map's values that no label has, where the values tell; else nothing.

    Args:
        values: the undeclared ones.
        path: of the label map.
    """
    if Path(path).suffix.lower() in (".jpg", ".jpeg"):
        return "; JPEG alters the values: store label maps as PNG"
    if list(values) == [255]:
        return '; masks often have 255 for "yes": write 1 into the files, or give the label 255 in dataset.json'
    return ""


def read_labels(content: Any, file: Path) -> tuple[dict[str, int], int | None, dict[str, list[str]]]:
    """Foreground labels (name -> value), the ignore label or None, and regions (name -> names of labels).

    A region's values that have no name of their own get one: label_VALUE.

    Args:
        content: "labels" of a dataset.json.
        file: the dataset.json, for messages.

    Raises:
        UserError: a name or value cannot be used, or a value has two names.
    """
    if not isinstance(content, dict):
        raise UserError(f'{file}: "labels" must be an object {{…}}, not {content!r}')
    # MSD writes the value first, nnU-Net the name.
    value_first = all(_as_value(key) is not None and isinstance(name, str) for key, name in content.items())
    entries = [(name, [key]) if value_first else (key, name) for key, name in content.items()]
    named = {str(name): _values(name, values, file) for name, values in entries}
    if len(named) < len(entries):
        raise UserError(f'{file}: "labels" gives one name to two values: {content}')
    ignore, *others = named.pop(IGNORE, [None])
    if others or ignore == 0:
        raise UserError(f'{file}: "{IGNORE}" must have one value above 0, not {[ignore, *others]}')
    named = {name: values for name, values in named.items() if values != [0]}
    for name, values in named.items():
        _check_name(name, file)
        if 0 in values:
            raise UserError(f'{file}: the region "{name}" holds 0, the background, which no region can: take it out')
    labels = _single_values(named, file)
    if ignore in labels.values():
        raise UserError(f'{file}: "{IGNORE}" has the value {ignore}, which is that of a label too')
    of_value = {value: name for name, value in labels.items()}
    regions = {name: [of_value[value] for value in values] for name, values in named.items() if len(values) > 1}
    return labels, ignore, regions


def _single_values(named: Mapping[str, list[int]], file: Path) -> dict[str, int]:
    """Name -> value in ascending order of the value; regions only lend their values."""
    of_value: dict[int, str] = {}
    for name, values in named.items():
        if len(values) == 1:
            if values[0] in of_value:
                raise UserError(f'{file}: "labels" gives the value {values[0]} to {of_value[values[0]]} and {name}')
            of_value[values[0]] = name
    for value in sorted({value for values in named.values() for value in values} - of_value.keys()):
        if f"label_{value}" in named:
            raise UserError(f'{file}: "labels" needs a name for the value {value}; label_{value} is taken')
        of_value[value] = f"label_{value}"
    if len(of_value) > MOST_LABELS:
        raise UserError(
            f'{file}: "labels" has {len(of_value)} labels, a network can learn {MOST_LABELS}: join them, or, where '
            "they number objects of one kind, give these one value"
        )
    return {of_value[value]: value for value in sorted(of_value)}


def _values(name: str, values: Any, file: Path) -> list[int]:
    listed = [_as_value(value) for value in (values if isinstance(values, list) else [values])]
    if not listed or None in listed:
        raise UserError(f'{file}: the label "{name}" must have an integer from 0 on, or a list of them, not {values!r}')
    if max(listed) > LARGEST_VALUE:
        raise UserError(
            f'{file}: the label "{name}" has the value {max(listed)}, the largest that can be used is {LARGEST_VALUE}: '
            "number the labels anew, in the files too"
        )
    return sorted(set(listed))


def _as_value(value: Any) -> int | None:
    """A label's value, written as a number or as digits."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():  # 1.0, as some programs write 1
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _check_name(name: str, file: Path) -> None:
    if not name.strip() or name[0] in "$@%" or "#" in name or "::" in name or name.startswith("_"):
        raise UserError(
            f'{file}: the label name "{name}" cannot be used, because configs would misread it: rename it, without '
            "#, :: and a leading $, @, % or _"
        )
