"""How much memory is free, as the system's files tell it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.common.free_memory import free_memory


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root / "proc", root / "cgroup"


MEMINFO = "MemTotal:  8000 kB\nMemFree: 100 kB\nMemAvailable:  4000 kB\n"
MACHINE = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/user.slice/job.scope\n"}
JOB = {"cgroup/user.slice/job.scope/memory.max": "max\n", "cgroup/user.slice/job.scope/memory.current": "5"}


def group(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    stat = f"anon {used}\nfile 7\ninactive_file {cached}\n"
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": str(used), f"{folder}/memory.stat": stat}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MACHINE | JOB, 4_096_000),  # no limit below the machine's
        (MACHINE | JOB | group("cgroup/user.slice", "1000000", 600_000, 50_000), 450_000),  # of the job's parent
        (MACHINE | group("cgroup/user.slice/job.scope", "1000", 3000, 0), 0),
        ({"proc/meminfo": MEMINFO} | group("cgroup", "2000000", 500_000, 1), 1_500_001),  # in a container
        (MACHINE | group("cgroup/user.slice/job.scope", "9000000000", 0, 0), 4_096_000),
        ({}, None),
        (
            {
                "proc/self/cgroup": "4:memory:/job\n1:cpu:/other\n",
                "cgroup/memory/job/memory.limit_in_bytes": "9000",
                "cgroup/memory/job/memory.usage_in_bytes": "5000",
                "cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "cgroup/memory/memory.usage_in_bytes": "5000",
            },
            4300,
        ),  # version 1
    ],
)
def test_the_smallest_room_counts(tmp_path: Path, files: dict[str, str], free: int | None) -> None:
    assert free_memory(*write(tmp_path, files)) == free


def test_this_machine_tells() -> None:
    free = free_memory()
    assert free is None or free > 2**20
