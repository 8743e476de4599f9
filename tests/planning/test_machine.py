"""What a plan says of the machine: memory of the processes that load, time of a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fingerprints import fingerprint

from scripts.common.case_memory import case_memory, most_workers
from scripts.planning.machine import SECONDS
from scripts.planning.make_plan import make_plan
from scripts.planning.memory import load_memory_table
from scripts.planning.plan import Plan, Wishes

ROOT = Path(__file__).parents[2]
WHOLE_BODY = {"shape": (512, 512, 600), "spacing": (0.78, 0.78, 1.0)}


def plan_of(facts: dict[str, Any], **wishes: Any) -> Plan:
    return make_plan(facts, "task", "/data/task", load_memory_table(), Wishes(**wishes))


def row(plan: Plan, setting: str) -> str:
    return next(f"{row.value}: {row.reason}" for row in plan.rows if row.setting == setting)


def test_memory_of_a_case() -> None:
    """Measured by benchmarks/large_case.py: 1.2 GB for int16, 1.4 to 1.7 GB for float32, beside the libraries."""
    coarse = case_memory((512, 512, 600), (133, 133, 200), 1)
    assert 1.5e9 < coarse < 2.0e9
    assert case_memory((512, 512, 600), (512, 512, 600), 1) == coarse, "reading and normalising take most"
    assert case_memory((100, 100, 100), (400, 400, 400), 1) > 64e6 * 16, "unless the new grid is finer"
    assert case_memory((512, 512, 600), (133, 133, 200), 4) > 3 * coarse


def test_workers_by_free_memory() -> None:
    assert most_workers(4, [10, 10, 10, 10, 10], None) == 4
    assert [most_workers(4, [10, 10, 10, 10, 10], free) for free in (45, 44, 25, 5)] == [4, 3, 2, 1]
    assert most_workers(4, [100, 10, 10, 10], 125) == 2, "the largest cases may come together"
    assert most_workers(4, [10], 12) == 4 and most_workers(0, [10], 1) == 0 and most_workers(4, [], 0) == 4


@pytest.mark.parametrize(("free", "workers", "warns"), [(64e9, 4, False), (5e9, 2, False), (1e9, 1, True)])
def test_as_many_workers_as_memory_holds(free: float, workers: int, warns: bool) -> None:
    plan = plan_of(fingerprint(**WHOLE_BODY), free_memory=int(free))
    assert plan.num_workers == workers
    said = row(plan, "num_workers")
    assert (
        said.startswith(f"{workers}: each takes up to 1.7 GB of memory for a case, beside 0.6 GB")
        and f"{free / 1e9:.1f} GB are free" in said
    )
    assert warns == any("preparing the largest case takes about 2.3 GB" in warning for warning in plan.warnings)


def test_memory_that_nobody_knows() -> None:
    plan = plan_of(fingerprint(**WHOLE_BODY))
    assert plan.num_workers == 4 and "free" not in row(plan, "num_workers")


@pytest.mark.parametrize(("dims", "shape"), [(2, "1x3x512x512"), (3, "1x1x64x64x64")])
def test_seconds_of_a_cpu_are_the_measured_ones(dims: int, shape: str) -> None:
    record = json.loads((ROOT / "benchmarks/results/networks_cpu_default.json").read_text(encoding="utf-8"))
    (row,) = (row for row in record["rows"] if row["shape"] == shape and row["network"] == "default")
    voxels = math.prod(map(int, shape.split("x")[2:]))
    assert SECONDS[dims] == pytest.approx(2 * row["forward_ms"] / 1000 / voxels * 1e6, rel=0.02)


def test_what_inference_costs_on_a_cpu() -> None:
    large = row(plan_of(fingerprint(**WHOLE_BODY)), "inference on a CPU")
    assert large.startswith(
        "3.2 h: of one core, with mirroring; 24 min without (--tta false): 4,320 windows of a median"
    )
    small = row(plan_of(fingerprint((256, 256), None)), "inference on a CPU")
    assert small.startswith("1 s: of one core, with mirroring; 1 s without (--tta false): 1 window of")
    sided = fingerprint(**WHOLE_BODY, labels={"left lung": 1, "right lung": 2})
    for case in sided["per_case"]:
        case |= {"voxels": {"left lung": 9, "right lung": 9}, "components": {"left lung": 1, "right lung": 1}}
    assert row(plan_of(sided), "inference on a CPU").startswith("1.6 h: of one core, with mirroring; 24 min without")
