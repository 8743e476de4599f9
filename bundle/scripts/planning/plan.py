"""What planning passes along: the overlay that grows, the reasons, and what is prescribed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Plan", "Row", "Wishes"]


class Row(NamedTuple):
    """A line of the printed plan."""

    setting: str
    value: str
    reason: str


class Wishes(NamedTuple):
    """What the user or the machine prescribes.

    ``gpu_gib`` is the memory that a train step may take, None plans for a CPU. ``free_memory`` is the machine's, in
    bytes, None where it is not known.
    """

    gpu_gib: float | None = None
    init_filters: int | None = None
    dimensions: int | None = None
    nnunet_plan: Path | None = None
    free_memory: int | None = None


@dataclass
class Plan:
    """The task overlay, how it came about, the fold to train ("all" where there are too few cases), and how many
    processes load (None: as many as the configs say)."""

    overlay: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    fold: int | str = 0
    num_workers: int | None = None

    def set(self, key: str, value: Any, reason: str, shown: str | None = None) -> None:
        """Put a setting into the overlay and into the table."""
        self.overlay[key] = value
        self.rows.append(Row(key, _shown(value) if shown is None else shown, reason))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
