"""The folder that everything goes to: what may be written there, and what is there already and may stay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.leftovers import remove_leftovers
from ..common.readable_json import write_json
from ..common.run_folder import PREDICTIONS, FinishedFolder, RunFolder
from ..engines.provenance import predicted_cases
from ..engines.weights import weights_digest
from ..images.files import case_name
from ..images.outputs import check_output_folder, open_folder, refuse_foreign

__all__ = ["Output", "digest_of", "file_digests"]

OPTION = "--output_dir"
CONFIGURATIONS = "configurations"  # in the record: their names
MADE_OF = "predictions"  # in the record: what the predictions were made with
STEPS = "steps"  # in the record: step -> {"of": digest of what it was made from, "made": {file: digest}, "found": …}


class Output:
    """The folder, checked: nothing is made before begin().

    Args:
        folder: as it was typed.
        inputs: files and folders that are read.

    Raises:
        UserError: nothing may be written there, or it holds files that this command did not write.
    """

    def __init__(self, folder: str | Path, inputs: Iterable[str | Path]) -> None:
        self.folder = FinishedFolder(check_output_folder(folder, OPTION, inputs))
        if RunFolder(self.folder.path).settings.is_file():
            raise UserError(f"{OPTION} {folder} is the folder of a training: give another")
        self.record = self._read_record()
        if not self.record:
            place = self.folder
            files = [place.record, place.rules, place.configuration, place.summary]
            refuse_foreign([*files, place.held_out, place.predictions, place.postprocessed, place.report], OPTION)
        for predictions in (self.folder.predictions, self.folder.postprocessed):
            _refuse_others(predictions)

    def check_predictions(self, made_of: Mapping[str, Any], overwrite: bool) -> None:
        """Compare what predictions are to be made with, and what those that are there were made with.

        Args:
            made_of: {"weights": digests, "settings": …, "images": {case: digest}}; more images than before may come.
            overwrite: whether predictions of others may go; they go at once.

        Raises:
            UserError: says in which of these they differ, unless ``overwrite``.
        """
        before = self.record.get(MADE_OF)
        if before is None:
            return
        images = made_of["images"]
        changed = [name for name in made_of if name != "images" and before.get(name) != made_of[name]]
        if any(images.get(case) != digest for case, digest in before.get("images", {}).items()):
            changed.append("images")
        if not changed:
            return
        if not overwrite:
            raise UserError(
                f"{self.folder.path} holds predictions of other {' and '.join(changed)}: add --overwrite to replace "
                f"them, or give another {OPTION}"
            )
        print(f"taking away what was made of other {' and '.join(changed)}", flush=True)
        for predictions in (self.folder.predictions, self.folder.postprocessed):
            _take_away(predictions)
        self.record = {key: value for key, value in self.record.items() if key != MADE_OF}

    def begin(self, names: Sequence[str]) -> None:
        """Make the folder, and note of which configurations it is before anything else is written."""
        open_folder(self.folder.path, OPTION)
        self._write(self.record | {CONFIGURATIONS: list(names)})

    def begin_predictions(self, made_of: Mapping[str, Any]) -> None:
        """Note what predictions will be made with, before the first is; check_predictions comes first."""
        self._write(self.record | {MADE_OF: dict(made_of)})

    def done(self, step: str, of: Any) -> dict[str, Any] | None:
        """The note of a step that was done with the same and whose files are there as it made them, or None."""
        note = self.record.get(STEPS, {}).get(step, {})
        if note.get("of") != digest_of(of):
            return None
        files = {name: self.folder.path / name for name in note["made"]}
        whole = all(path.is_file() and weights_digest(path) == note["made"][name] for name, path in files.items())
        return note if whole else None

    def note(self, step: str, of: Any, made: Sequence[Path], found: Any = None) -> None:
        """Note that a step is done.

        Args:
            of: whatever it depends on, as JSON could hold it.
            made: files in the folder.
            found: what came of it besides.
        """
        digests = {self.name_of(path): weights_digest(path) for path in made}
        note = {"of": digest_of(of), "made": digests, "found": found}
        self._write(self.record | {STEPS: self.record.get(STEPS, {}) | {step: note}})

    def name_of(self, path: Path) -> str:
        """A file of the folder as records and summary name it."""
        return path.relative_to(self.folder.path).as_posix()

    def _write(self, record: dict[str, Any]) -> None:
        self.record = record
        write_json(self.folder.record, record)

    def _read_record(self) -> dict[str, Any]:
        """What this command noted, {} where it did not."""
        try:
            record = json.loads(self.folder.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        ours = isinstance(record, dict) and all(isinstance(record.get(key, {}), dict) for key in (MADE_OF, STEPS))
        return record if ours and CONFIGURATIONS in record else {}


def digest_of(value: Any) -> str:
    """What tells a nested value, as JSON could hold it, from others."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def file_digests(files: Mapping[str, Path | str | Sequence[str]]) -> dict[str, Any]:
    """Case -> digest of its file, or of its files."""
    return {
        name: weights_digest(file) if isinstance(file, (str, Path)) else digest_of(list(map(weights_digest, file)))
        for name, file in files.items()
    }


def _refuse_others(predictions: Path) -> None:
    remove_leftovers(predictions)
    ours = {PREDICTIONS, *predicted_cases(predictions)}
    found = sorted(predictions.iterdir()) if predictions.is_dir() else []
    refuse_foreign([path for path in found if path.is_dir() or not ours & {path.name, _case(path)}], OPTION)


def _case(path: Path) -> str:
    return case_name(path).removesuffix("_probabilities")


def _take_away(predictions: Path) -> None:
    """Remove the predictions that are all this command's, their record last."""
    files = list(predictions.iterdir()) if predictions.is_dir() else []
    for path in sorted(files, key=lambda path: path.name == PREDICTIONS):
        path.unlink()
