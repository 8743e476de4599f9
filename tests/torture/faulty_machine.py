"""Faults of the machine: full and read-only disks, limits of memory and files, killed workers, things that go away."""

from __future__ import annotations

import atexit
import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from . import crash_points, disks, samples, server
from .ground import Ground
from .refusals import Scenario
from .samples import Words

# Of Linux's capability.h and prctl.h
_CAPABILITIES_VERSION, _OVERRIDE, _READ_SEARCH, _DROP_FROM_BOUNDS = 0x20080522, 1, 2, 24


def scenarios(ground: Ground, starving: bool = True) -> Iterator[Scenario]:
    """All of them; those that need a mount are left out where mounting is not allowed.

    Args:
        starving: also those in which libraries run short of something at a point that differs from machine to machine.
    """
    yield from _file_limits(ground)
    yield from _permissions(ground)
    yield from _failing_renames(ground)
    yield from _vanishing(ground)
    if not starving:
        return
    yield from _memory_limits(ground)
    yield from _descriptor_limits(ground)
    yield from _killed_workers(ground)
    if disks.why_not() is None:
        yield from _full_disks(ground)
        yield from _small_shared_memory(ground)


def commands(ground: Ground, out: Path) -> dict[str, Words]:
    """Every command that writes, into a folder that is yet to be made."""
    overlay, labels = ground.overlay, ground.volumes / "labelsTr"
    return {
        "training": samples.training(overlay, out, ground.cache),
        "preparation": samples.training(overlay, ground.out / "run", out),
        "inference": samples.inference(overlay, ground.images, out, ground.weights),
        "probabilities": samples.inference(overlay, ground.images, out, ground.weights, "--save_probabilities", "true"),
        "evaluation": samples.evaluating(overlay, ground.run, ground.cache, out),
        "planning": samples.planning(ground.volumes, out / "mini.json"),
        "determine": samples.determine(overlay, ground.predictions, labels, out / "rules.json"),
        "apply": samples.apply(ground.predictions, ground.rules, out),
        "report": samples.report(overlay, ground.predictions, ground.volumes, out),
        "cross-validation": samples.cross_validation(overlay, out, ground.cache),
    }


def _full_disks(ground: Ground) -> Iterator[Scenario]:
    disk = ground.out
    sizes = {
        "training": ("16k", "200k", "2000k", "4000k", "6000k"),
        "preparation": ("40k", "120k"),
        "inference": ("4k", "8k", "12k"),
        "probabilities": ("8k", "60k"),
        "evaluation": ("4k", "8k", "16k"),
        "planning": ("4k",),
        "determine": ("4k",),
        "apply": ("4k", "8k"),
        "report": ("8k", "60k", "300k"),
    }
    named = (str(disk), "No space left", "disk")
    for name, command in commands(ground, disk / "out").items():
        for size in sizes.get(name, ()):
            around = partial(disks.small_disk, disk, size)
            yield Scenario(f"{name} on a disk of {size}", command, named, may_succeed=True, around=around)


def _file_limits(ground: Ground) -> Iterator[Scenario]:
    """As a quota does: a write fails in the midst of a file."""
    sizes = {
        "training": (1000, 100_000, 1_000_000, 3_000_000),
        "report": (2000, 20_000),
        "planning": (200,),
        "preparation": (100, 4000),
    }
    for name, command in commands(ground, ground.out / "out").items():
        for size in sizes.get(name, (20, 200)):
            named = (str(ground.out), "too large")
            yield Scenario(
                f"{name}, files of at most {size} bytes", command, named, _file_limit(size), may_succeed=True
            )


def _file_limit(size: int) -> server.Setup:
    def setup() -> None:
        _print_into_a_pipe()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return setup


def _print_into_a_pipe() -> None:
    """Have another process write what this one prints, since its log file may not grow either."""
    log, here = os.dup(1), os.getpid()
    readable, writable = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.setsid()
        os.close(writable)
        while block := os.read(readable, 1 << 16):
            os.write(log, block)
        os._exit(0)
    os.close(readable)
    for stream in (1, 2):
        os.dup2(writable, stream)
    os.close(writable)
    server.open_streams()

    def wait() -> None:
        if os.getpid() == here:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            if server.wait(helper, 1.0) is None:  # a child that goes on, as multiprocessing's own do, holds the pipe
                os.kill(helper, signal.SIGKILL)

    atexit.register(wait)


def _permissions(ground: Ground) -> Iterator[Scenario]:
    """Folders that may be read but not written into, and such that may not even be read."""
    locked, closed = ground.empty("locked"), ground.empty("closed")
    for name, command in commands(ground, locked / "out").items():
        yield Scenario(f"{name} into a read-only folder", command, (str(locked), "output"), _without_privileges)
    (closed / "file").write_text("{}", encoding="utf-8")
    locked.chmod(0o555)
    closed.chmod(0)
    overlay, images, out = ground.overlay, ground.images, ground.out / "open"
    inputs = {
        "images": samples.inference(overlay, closed, out, ground.weights),
        "weights": samples.inference(overlay, images, out, closed / "file"),
        "data set": samples.training(overlay, out, out, dataset_dir=closed),
        "cache": samples.training(overlay, out, closed),
        "data set of a plan": samples.planning(closed, out / "mini.json"),
        "predictions of rules": samples.determine(overlay, closed, ground.volumes / "labelsTr", out / "rules.json"),
        "predictions": samples.apply(closed, ground.rules, out),
        "rules": samples.apply(ground.predictions, closed / "file", out),
        "predictions of a report": samples.report(overlay, closed, ground.volumes, out),
    }
    for name, command in inputs.items():
        yield Scenario(f"no permission to read: {name}", command, (str(closed),), _without_privileges)
    yield _one_closed_image(ground, out)


def _one_closed_image(ground: Ground, out: Path) -> Scenario:
    images = shutil.copytree(ground.images, ground.empty("one_closed") / "images")
    (images / "c02_0000.nii.gz").chmod(0)
    command = samples.inference(ground.overlay, images, out, ground.weights)

    def then() -> str | None:
        written = len(list(out.glob("*.nii.gz")))
        return None if written == 5 else f"{written} of the 5 others predicted"

    return Scenario("no permission to read: one image", command, ("c02",), _without_privileges, then=then)


def _without_privileges() -> None:
    """Root may read and write everything: from here on permissions bind it too, and the programs that it starts."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, sets)
        for number in (_OVERRIDE, _READ_SEARCH):
            libc.prctl(_DROP_FROM_BOUNDS, number)
            for place in range(3):  # effective, permitted, inheritable
                sets[place] &= ~(1 << number)
        if libc.capset(header, sets):
            raise OSError(ctypes.get_errno(), "capset")


def _memory_limits(ground: Ground) -> Iterator[Scenario]:
    named = ("memory", "Memory", "allocate", "c0")  # some libraries do not say what they lack: the case then
    for name, command in commands(ground, ground.out / "out").items():
        for mebibytes in (2, 20):
            setup = _memory_limit(mebibytes)
            yield Scenario(f"{name} with {mebibytes} MiB of memory", command, named, setup, True, may_crash=True)


def _memory_limit(mebibytes: int) -> server.Setup:
    def setup() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20),) * 2)

    return setup


def _descriptor_limits(ground: Ground) -> Iterator[Scenario]:
    everything = commands(ground, ground.out / "out")
    for name, more in (("training", ["--num_workers", "2"]), ("planning", ["--workers", "2"]), ("report", [])):
        for count in (16, 32):
            setup = _descriptor_limit(count)
            command = [*everything[name], *more]
            yield Scenario(f"{name} with {count} open files", command, ("files", "ulimit"), setup, may_succeed=True)


def _descriptor_limit(count: int) -> server.Setup:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def _failing_renames(ground: Ground) -> Iterator[Scenario]:
    """A network disk that loses its server: files are written, and cannot be put in place."""
    everything = commands(ground, ground.out / "out")
    files = {
        "training": ("checkpoint.pt", "model.pt", "model_final.pt", "settings.json", "cases.json", "log.jsonl"),
        "inference": ("c03", "predictions.json"),
        "evaluation": ("metrics.json", "metrics.csv"),
        "planning": ("mini.json",),
        "determine": ("rules.json",),
        "apply": ("c03",),
        "report": ("report.html", "summary.json"),
    }
    for name, names in files.items():
        for file in names:
            setup = crash_points.failing([ground.out], "replace", file, errno.EIO)
            named = (file, str(ground.out))
            yield Scenario(f"{name}, {file} cannot be put in place", everything[name], named, setup, may_succeed=True)


def _vanishing(ground: Ground) -> Iterator[Scenario]:
    """Folders that somebody removes while they are used."""
    out, cache = ground.out / "run", ground.out / "cache"
    train = samples.training(ground.overlay, out, cache)
    watched = [ground.out]
    for name, folder in (("cache", cache), ("output folder", out)):
        for event, file in (("replace", "settings.json"), ("replace", "model.pt"), ("replace", "log.jsonl")):
            remove = partial(shutil.rmtree, folder, ignore_errors=True)
            setup = crash_points.at_first(watched, event, file, remove)
            named = (str(folder), str(out))
            yield Scenario(f"training, its {name} removed at {file}", train, named, setup, may_succeed=True)
    images = ground.out / "images"
    command = samples.inference(ground.overlay, images, out, ground.weights)
    setup = crash_points.at_first(watched, "replace", "c00", lambda: (images / "c04_0000.nii.gz").unlink())
    copy = partial(shutil.copytree, ground.images, images)
    yield Scenario("inference, an image removed meanwhile", command, ("c04",), setup, prepare=copy)


def _killed_workers(ground: Ground) -> Iterator[Scenario]:
    out = ground.out / "out"
    everything = commands(ground, out)
    loaders = ["--num_workers", "2"]
    busy = {
        "training": [*everything["training"], "--epochs", "8", *loaders],
        "preparation": [*everything["preparation"], *loaders],
        "inference": [*everything["inference"], *loaders],
        "evaluation": [*everything["evaluation"], *loaders],
        "planning": [*everything["planning"], "--workers", "2"],
        "determine": [*everything["determine"], "--workers", "2"],
        "report": [*everything["report"], "--workers", "2"],
    }
    named = ("killed", "worker", "num_workers")
    for name, command in busy.items():
        for delay in (0.2, 0.6):  # the first children of a pool are not yet its workers
            act = partial(_kill_a_worker, delay=delay)
            title = f"{name}, a worker killed after {delay} s"
            yield Scenario(title, command, named, act=act, may_succeed=True)


def _kill_a_worker(pid: int, delay: float) -> None:
    """Kill a child of the command that long after its children appear, or do nothing if none ever do."""
    until = time.monotonic() + 20
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        children = [member for member in server.group_members(pid) if member != pid and not _is_tracker(member)]
        if children:
            time.sleep(delay)
            if _is_tracker(children[-1]):  # only now has it become that
                continue
            try:
                os.kill(children[-1], signal.SIGKILL)
            except ProcessLookupError:
                continue
            return
        if not server.group_members(pid):
            return
        time.sleep(0.002)


def _is_tracker(pid: int) -> bool:
    """Python's own process that removes semaphores: no worker, and too small to be killed for lack of memory."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _small_shared_memory(ground: Ground) -> Iterator[Scenario]:
    everything = commands(ground, ground.out / "out")
    around = partial(disks.small_disk, Path("/dev/shm"), "64k")
    for name in ("training", "preparation", "inference", "evaluation"):
        command = [*everything[name], "--num_workers", "2"]
        named = ("num_workers", "shm")
        yield Scenario(f"{name} with 64 KiB of shared memory", command, named, around=around, may_succeed=True)
