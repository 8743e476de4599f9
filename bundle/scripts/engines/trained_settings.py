"""Settings that inference has to share with the training of its weights, or must not take over from it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.command_line import differing, from_words, option_values
from ..common.distributed import is_main_process
from ..common.errors import UserError
from .ensemble import checkpoint_paths
from .weights import read_settings

__all__ = ["as_trained", "input_folder"]

logger = logging.getLogger("lightm_unet")


def as_trained(
    settings: Mapping[str, Any], checkpoint: str | Sequence[str], overlays: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """The values to use of settings that the user may have typed in training only: what is typed now comes first, then
    what the settings.json beside the weights says, then the task overlay.

    Args:
        settings: name, such as "patch_size", -> value that the configs and the command line give.
        checkpoint: file of weights, or several.
        overlays: where a value may come from if nobody typed it; asked in a notebook, which has no command line.

    Raises:
        UserError: several files of weights were trained with different values, and none is typed.
    """
    trained = {path: read_settings(path) for path in checkpoint_paths(checkpoint)}
    return {name: _as_trained(name, value, trained, overlays) for name, value in settings.items()}


def _as_trained(
    name: str, value: Any, settings: Mapping[str, Mapping[str, Any]], overlays: Sequence[str | Path]
) -> Any:
    trained = {path: own[name] for path, own in settings.items() if name in own}
    others = {path: own for path, own in trained.items() if differing({name: own}, {name: value})}
    if not others:
        return value
    said = ", ".join(f"{path} with {own}" for path, own in trained.items())
    if _is_typed(name, value, overlays):
        _say(logging.WARNING, f"{name} {value} is used as typed, though the weights were trained otherwise: {said}")
        return value
    first = next(iter(others.values()))
    if any(differing({name: own}, {name: first}) for own in trained.values()):
        raise UserError(f"the weights were trained with different values of {name} ({said}): give one with --{name}")
    _say(logging.INFO, f"{name} {first} is used, as in training ({said}), not the {value} of the task overlay")
    return first


@from_words
def input_folder(
    input_dir: str | None = None, dataset_dir: str | None = None, overlays: Sequence[str | Path] = ()
) -> str | None:
    """What inference predicts: ``input_dir``, or what MONAI's tools call ``dataset_dir``, unless that is only what the
    task overlay says of its training data.

    Args:
        input_dir, dataset_dir: of the configs, or given.
        overlays: files where ``dataset_dir`` may come from.
    """
    if input_dir or not dataset_dir:
        return input_dir
    return None if any(_overlay_says(Path(path), "dataset_dir", dataset_dir) for path in overlays) else dataset_dir


def _say(level: int, message: str) -> None:
    if is_main_process():
        logger.log(level, message)


def _is_typed(name: str, value: Any, overlays: Sequence[str | Path]) -> bool:
    main_spec = getattr(sys.modules["__main__"], "__spec__", None)
    if main_spec is None or not main_spec.name.startswith("monai.bundle"):
        return not any(_overlay_says(Path(path), name, value) for path in overlays)
    given = option_values(sys.argv[1:])
    words = [*given, *(_read(Path(given["args_file"])) if "args_file" in given else ())]
    return name in {word.replace("::", "#").partition("#")[0] for word in words}


def _overlay_says(path: Path, name: str, value: Any) -> bool:
    content = _read(path)
    return name in content and not differing({name: content[name]}, {name: value})


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever needs the file says what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}
