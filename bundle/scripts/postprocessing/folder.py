"""Applying rules to a folder of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.workers import map_cases
from ..engines.prediction import check_outputs, outputs_of
from ..engines.provenance import read_provenance, write_provenance
from ..images.cases import save_label_map
from ..images.files import prediction_suffix
from ..images.outputs import check_output_folder, open_folder
from ..images.pairs import files_by_case, read_label_map
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
        UserError: the folders are one; label maps are there already and ``overwrite`` is false; nothing may be written
            there (see images/outputs.py); or cases that cannot be cleaned, listed after all others are done.
    """
    source, target = Path(predictions), Path(output_dir)
    files = files_by_case(source)
    if source.resolve() == target.resolve():
        raise UserError(f"{target} holds the raw predictions, which are kept: give another --output_dir")
    check_output_folder(output_dir, "--output_dir", files.values())
    targets = {path: target / (name + prediction_suffix(path)) for name, path in files.items()}
    cases = [{"name": name, "image": str(path)} for name, path in files.items()]
    check_outputs(cases, target)
    existing = [case["name"] for case in cases if any(path.exists() for path in outputs_of(case, target))]
    if existing and not overwrite:
        raise UserError(
            f"{target} already holds {len(existing)} of these {len(files)} label maps: add --overwrite or give another "
            "--output_dir"
        )
    runs = read_provenance(source)
    open_folder(target, "--output_dir")
    if runs is not None:
        write_provenance(target, *runs)
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
