"""Whether the names of cases look as if several were one person's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

__all__ = ["same_person"]

# sub-01_ses-2, patient001_frame12, P7-left
_PERSON = re.compile(r"((?:sub|subj|subject|pat|patient|pt|pid|person|p)[-_ ]?\d+|sub-[a-z0-9]+)(?=[-_. a-z]).+", re.I)
# p01_a, 17-pre, 03_2, Image_01L: what stands before the last word; where that has no number, the word must not be one.
_LAST_WORD = re.compile(r"(.*\d.*?)(?:[-_. ]+\w+|[a-z])|(.+?)[-_. ]+(?:[a-z]+|[a-z]+\d+)", re.I)
_SERIAL = re.compile(r".*[-_. ]\d{3,}")  # site1_001: numbers of cases, not of one person's images
FEW_IMAGES, MANY_PERSONS = 10, 10


def same_person(names: Sequence[str]) -> list[str]:
    """Two or three names of cases that may be one person's, or none.

    Cases of one person share all but the last word of their names. Where nearly all cases share it, it is the data
    set's; where few groups of many do, they are hospitals or scanners.
    """
    groups = defaultdict(list)
    for name in sorted(names):
        groups[_person(name)].append(name)
    several = [group for group in groups.values() if len(group) > 1]
    few_each = several and median(map(len, several)) <= FEW_IMAGES
    if len(groups) == 1 or not (few_each or len(several) > MANY_PERSONS):
        return []
    return several[0][:3]


def _person(name: str) -> str:
    """What a name has in common with those of the same person's other images; else the name."""
    if match := _PERSON.fullmatch(name):
        return match[1].lower()
    match = None if _SERIAL.fullmatch(name) else _LAST_WORD.fullmatch(name)
    return (match[1] or match[2]).lower() if match else name
