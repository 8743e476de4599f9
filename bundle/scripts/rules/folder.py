"""Applying rules to a folder of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.files import prediction_suffix
from ..data.images import save_label_map
from ..data.pairs import files_by_case, read_label_map
from ..errors import UserError
from ..provenance import read_provenance, write_provenance
from ..workers import map_cases
from .apply import apply_rules

__all__ = ["apply_to_folder"]


def apply_to_folder(
    predictions: str | Path,
    rules: Mapping[str, Any],
    output_dir: str | Path,
    overwrite: bool = False,
    workers: int | None = None,
) -> int:
    """Clean every label map of a folder into another folder, in its format and geometry; predictions.json goes along.

    Returns:
        How many label maps were written.

    Raises:
        UserError: the folders are one; label maps are there already and ``overwrite`` is false; the folder cannot be
            written; or cases that cannot be cleaned, listed after all others are done.
    """
    source, target = Path(predictions), Path(output_dir)
    files = files_by_case(source)
    targets = {path: target / (name + prediction_suffix(path)) for name, path in files.items()}
    if source.resolve() == target.resolve():
        raise UserError(f"{target} holds the raw predictions, which are kept: give another --output_dir")
    existing = [path for path in targets.values() if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{target} already holds {len(existing)} of these {len(files)} label maps: add --overwrite or give another "
            "--output_dir"
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        if (runs := read_provenance(source)) is not None:
            write_provenance(target, *runs)
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror}; give another --output_dir") from error
    clean = partial(_clean_file, rules=rules)
    return sum(1 for _ in map_cases(clean, list(targets.items()), "postprocessing", workers))


def _clean_file(paths: tuple[Path, Path], rules: Mapping[str, Any]) -> None:
    source, target = paths
    label_map = read_label_map(source, rules["labels"].values(), rules.get("image_dims"))
    cleaned = apply_rules(label_map.array, rules, label_map.spacing)
    try:
        save_label_map(target, cleaned, like=source)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
