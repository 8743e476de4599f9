"""Labels that exist on both sides of the body, and the axis that mirroring leaves out because of them.

A mirror image of a left kidney is a right one: a network that is trained on both as "left" cannot tell them apart.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..common.command_line import from_words
from ..common.distributed import is_main_process
from ..common.errors import UserError, first_few

__all__ = ["check_mirror_axes", "left_right_axis", "one_sided_labels", "sided_labels"]

logger = logging.getLogger("lightm_unet")

# Words that stand for a side, and short forms that do where the other side is a label too.
_WORDS = {
    "left": "left links linke linker linkes gauche izquierda izquierdo esquerda esquerdo sinistra sinistro sinister",
    "right": "right rechts rechte rechter rechtes droite droit derecha derecho direita direito destra destro dexter",
}
_SHORT = {"left": "l lt lft lh lhs sin sx", "right": "r rt rgt rh rhs dex dext dx"}
_AT_AN_END = {"left": ("left", "l", "左"), "right": ("right", "r", "右")}  # of a word: leftkidney, KIDNEYL, 左肾
_WORD_SIDES = {word: side for side, words in _WORDS.items() for word in words.split()}
_SIDES = _WORD_SIDES | {word: side for side, words in _SHORT.items() for word in words.split()}

# Before the capital of CamelCase, between an abbreviation and a word (LParotid), after a number (T12L); the number
# itself belongs to the word before it, for L5 is a vertebra.
_BOUNDARY = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=\d)(?=[^\W\d_])")


class _Reading(NamedTuple):
    """One way to read a label: the words that remain without the side, in any order; how sure the side is."""

    rest: tuple[str, ...]
    side: str
    is_word: bool


def sided_labels(labels: Iterable[str], regions: Iterable[str] = ()) -> list[str]:
    """The labels and regions whose meaning mirroring would change: both sides of something, in their order.

    Two names are the two sides of one thing where only the side tells them apart (LParotid and parotid_right, LV and
    RV). "kidney" beside "kidney left" counts too, and so does any left beside any right that is a word of its own.
    """
    labels = list(labels)
    names = [*labels, *(name for name in regions if name not in labels)]
    readings = {name: _readings(name) for name in names}
    whole = {_key(_words(name)) for name in labels}
    known = {(reading.rest, reading.side) for name in names for reading in readings[name]}
    without_side = {reading.rest for name in names for reading in readings[name] if reading.is_word} & whole
    both_sides = {"left", "right"} <= {_side(name, _SIDES) for name in names}
    return [
        name
        for name in names
        if (both_sides and _side(name, _SIDES))
        or any((reading.rest, _other(reading.side)) in known for reading in readings[name])
        or any(reading.is_word and reading.rest in without_side for reading in readings[name])
        or _key(_words(name)) in without_side
    ]


def one_sided_labels(labels: Iterable[str]) -> list[str]:
    """The labels that name a side ("left atrium"), whether or not the other side is a label too."""
    return [name for name in labels if _side(name, _WORD_SIDES)]


def left_right_axis(spatial_dims: int, slice_axis: int | None, volume_axis: int = 0) -> int | None:
    """The axis of a patch that runs from left to right, which of a picture (rows, columns) is its width.

    Args:
        spatial_dims: of the network.
        slice_axis: axis along which a 2D network walks through volumes, or None.
        volume_axis: the axis of volumes that runs so: the first after turning to RAS; the last of a TIFF stack, which
            knows no directions and keeps (slices, rows, columns).

    Returns:
        None where each slice lies beside the last one from left to right, so that no axis of the patch does.
    """
    if spatial_dims == 3:
        return volume_axis
    if slice_axis is None:
        return 1
    return None if slice_axis == volume_axis else volume_axis - (slice_axis < volume_axis)


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+", _BOUNDARY.sub(" ", name)) if word]


def _key(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(words))


def _side(name: str, sides: Mapping[str, str]) -> str | None:
    """The side that a name has as a word of its own; None where it has none or both."""
    found = {sides[word] for word in _words(name) if word in sides}
    return found.pop() if len(found) == 1 else None


def _readings(name: str) -> list[_Reading]:
    words, found = _words(name), []
    for position, word in enumerate(words):
        others = words[:position] + words[position + 1 :]
        if word in _SIDES:
            found.append(_Reading(_key(others), _SIDES[word], True))
        for side, ends in _AT_AN_END.items():
            for end in ends:
                rests = {word.removeprefix(end), word.removesuffix(end)} - {word, ""}
                found += [_Reading(_key([*others, rest]), side, False) for rest in rests]
    return found


def _other(side: str) -> str:
    return "right" if side == "left" else "left"


@from_words
def check_mirror_axes(
    mirror_axes: Sequence[int],
    spatial_dims: int,
    slice_axis: int | None,
    labels: Mapping[str, Any],
    regions: Mapping[str, Any] | None,
) -> None:
    """Warn of a training that mirrors every axis although labels have sides, as older plans had it.

    Raises:
        UserError: ``mirror_axes`` is no list.
    """
    if not isinstance(mirror_axes, (list, tuple)):
        raise UserError(f"mirror_axes must be a list of axes, such as [0, 1], not {mirror_axes}")
    axis, sided = left_right_axis(spatial_dims, slice_axis), sided_labels(labels, regions or {})
    if sided and axis is not None and set(mirror_axes) == set(range(spatial_dims)) and is_main_process():
        logger.warning(
            f"labels of both sides ({first_few(sided, 4)}) are mirrored: take the left-right axis "
            f"({axis}, unless these are TIFF stacks) out of mirror_axes, or the network cannot tell them apart"
        )
