"""How much memory is free, as the system's files tell it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.common.free_memory import free_memory


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root / "proc", root / "cgroup"


BUNDLE = Path(__file__).parents[2] / "bundle"
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


FREED = """
import ctypes, sys
from pathlib import Path
import numpy as np
from scripts.common.free_memory import give_back_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

ctypes.CDLL("libc.so.6").mallopt(-4, 0)
ctypes.CDLL("libc.so.6").mallopt(-1, 2**31 - 1)
arrays = [np.ones(2**20) for _ in range(32)]
del arrays[::2]
before = resident()
give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where there is no glibc, nothing is kept")
def test_what_a_run_has_freed_is_given_back(tmp_path: Path) -> None:
    """Between what is in use, too; a run keeps it until then, see command_line.start."""
    program = subprocess.run([sys.executable, "-c", FREED], cwd=BUNDLE, capture_output=True, text=True, check=True)
    assert int(program.stdout) > 100 * 2**20
