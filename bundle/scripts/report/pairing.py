"""Which prediction, reference, image and postprocessed prediction belong to one case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError, first_few
from ..images.files import split_channel
from ..images.pairs import files_by_case

__all__ = ["Case", "pair_cases"]

NAMES_SHOWN = 50  # of the names in an error message, of each kind


@dataclass(frozen=True)
class Case:
    """The files of one case; ``images`` are its channels, where each has a file of its own."""

    name: str
    prediction: Path
    label: Path | None = None
    images: tuple[Path, ...] = ()
    postprocessed: Path | None = None


def pair_cases(
    predictions: Path, images: Path | None, labels: Path | None, postprocessed: Path | None, subset: bool = False
) -> list[Case]:
    """Pair the files of the folders by case name; images that nobody predicted are left out.

    Args:
        predictions, images, labels, postprocessed: folders.
        subset: leave out references and postprocessed files that have no prediction.

    Returns:
        The cases, sorted by name.

    Raises:
        UserError: a folder is missing or holds no image, two files of it have one name, or the folders do not
            hold the same cases; names every file.
    """
    predicted = files_by_case(predictions)
    expected = files_by_case(labels) if labels else {}
    cleaned = files_by_case(postprocessed) if postprocessed else {}
    channels = _channels_by_name(images, predicted) if images else {}
    problems = []
    if labels:
        problems += _differences("prediction", predicted, "reference", expected, subset)
    if postprocessed:
        problems += _differences("prediction", predicted, "postprocessed prediction", cleaned, subset)
    if images:
        problems += _lacking("prediction", "image", predicted.keys() - channels.keys())
    if problems:
        raise UserError("the folders do not hold the same cases:\n  " + "\n  ".join(problems))
    return [
        Case(name, predicted[name], expected.get(name), channels.get(name, ()), cleaned.get(name))
        for name in sorted(predicted)
    ]


def _channels_by_name(folder: Path, cases: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its image, or the files of its channels in order."""
    wanted, found = set(cases), {}
    for name, path in files_by_case(folder).items():
        case = name if name in wanted else split_channel(path)[0]
        if case in wanted:
            found.setdefault(case, []).append(path)
    return {case: tuple(paths) for case, paths in found.items()}


def _differences(kind: str, have: dict, other_kind: str, others: dict, subset: bool) -> list[str]:
    surplus = [] if subset else _lacking(other_kind, kind, others.keys() - have.keys(), "; --subset leaves them out")
    return _lacking(kind, other_kind, have.keys() - others.keys()) + surplus


def _lacking(kind: str, other_kind: str, names: Iterable[str], hint: str = "") -> list[str]:
    names = sorted(names)
    if not names:
        return []
    return [f"{len(names)} {kind}(s) without {other_kind}{hint}: {first_few(names, NAMES_SHOWN, counted=True)}"]
