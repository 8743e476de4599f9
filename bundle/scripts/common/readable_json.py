"""JSON that people read and edit: short lists and objects on one line, long ones item by item.

Written in ASCII (ö as \\u00f6): MONAI reads overlays in the encoding of the system, whichever that is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_writing import replacing
from .errors import UserError

__all__ = ["read_json", "readable_json", "without_nan", "write_json"]

LINE_LENGTH = 100
INDENT = "    "


def readable_json(value: Any, level: int = 0) -> str:
    """``value`` as JSON.

    Args:
        value: what the json module can write, without NaN and infinity.
        level: how deep it is nested; the outermost object is always broken into lines.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    flat = json.dumps(value, allow_nan=False)
    short = level > 0 and len(flat) <= LINE_LENGTH - level * len(INDENT)
    if short or not value or not isinstance(value, (Mapping, list, tuple)):
        return flat
    inner = INDENT * (level + 1)
    if isinstance(value, Mapping):
        items = [f"{json.dumps(str(key))}: {readable_json(v, level + 1)}" for key, v in value.items()]
        opening, closing = "{}"
    else:
        items = [readable_json(item, level + 1) for item in value]
        opening, closing = "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{INDENT * level}{closing}"


def read_json(path: str | Path, kind: type = dict, advice: str = "mend it, or put another in its place") -> Any:
    """What a JSON file holds, with or without a byte order mark.

    Args:
        kind: dict or list, of which the content must be one.
        advice: what to do about a broken file.

    Raises:
        UserError: names the file, which cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8").removeprefix("\ufeff"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): {advice}") from error
    if not isinstance(content, kind):
        expected = "an object {…}" if kind is dict else "a list […]"
        raise UserError(f"{path} must hold {expected}, not {type(content).__name__}: {advice}")
    return content


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` readably; the folder is made, and no half-written file is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(readable_json(value) + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Nested mappings, lists and numbers with null for NaN and infinities, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
