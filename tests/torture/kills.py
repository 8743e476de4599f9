"""Kills a command, looks at what it left, and runs it again.

A command is killed at a random moment (SIGKILL, SIGTERM, SIGINT), right before or after each of its events on the disk,
or in the midst of writing a file. Then no file in place may be broken, no child may go on, the same command has to end
with the result of an undisturbed one, bit by bit, and nothing temporary may be left: what the kill left is aged first,
because a fresh .part file may be another process's.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import crash_points, samples, server, whole
from .ground import Ground
from .samples import Words
from .table import Journal, Row

SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGTERM] * 2 + [signal.SIGINT]
FEWEST = 2  # commands that are killed, however short the time
PATIENCE = 12.0  # seconds that children have to notice that their parent is gone; torch's loaders look every 5


@dataclass
class Subject:
    """A command that is killed.

    Attributes:
        name: in the table.
        command: the words, given the folder that it writes into.
        again: the words of the second run, if they are others.
        prepare: fills the folder before the first run.
        watched: sub-folder in which events on the disk are counted.
        seconds, wanted, events, kills: of an undisturbed run its time, the folder's contents, and its events on the
            disk; the kills that are yet to be made. See measure().
    """

    name: str
    command: Callable[[Path], Words]
    again: Callable[[Path], Words] | None = None
    prepare: Callable[[Path], None] = lambda folder: None
    watched: str = "."
    seconds: float = 0.0
    wanted: dict[str, str] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    kills: list[tuple[str, server.Setup | None]] = field(default_factory=list)


def subjects(ground: Ground) -> list[Subject]:
    """Every command that writes."""
    overlay, images, weights = ground.overlay, ground.images, ground.weights

    def train(folder: Path, workers: int = 0) -> Words:
        resume = {"resume": "true"} if (folder / "run/checkpoint.pt").exists() else {}
        return samples.training(overlay, folder / "run", folder / "cache", num_workers=workers, **resume)

    def with_cache(folder: Path) -> None:
        shutil.copytree(ground.cache, folder / "cache")

    def with_fold(folder: Path) -> None:
        shutil.copytree(ground.run, folder / "runs/fold_0")

    def predict(folder: Path, *more: str) -> Words:
        return samples.inference(overlay, images, folder / "out", weights, *more)

    return [
        Subject("training", train, prepare=with_cache, watched="run"),
        Subject("preparation", train, watched="cache"),
        Subject("preparation, two workers", lambda folder: train(folder, workers=2), watched="cache"),
        Subject("inference", predict, lambda folder: predict(folder, "--skip_existing", "true")),
        Subject(
            "inference, probabilities",
            lambda folder: predict(folder, "--save_probabilities", "true", "--num_workers", "1"),
            lambda folder: predict(folder, "--save_probabilities", "true", "--skip_existing", "true"),
        ),
        Subject(
            "evaluation",
            lambda folder: samples.evaluating(overlay, ground.run, ground.cache, folder / "evaluation"),
        ),
        Subject("planning", lambda folder: samples.planning(ground.volumes, folder / "mini.json")),
        Subject(
            "planning, two workers",
            lambda folder: samples.planning(ground.volumes, folder / "mini.json", "--workers", "2"),
        ),
        Subject(
            "cross-validation",
            lambda folder: samples.cross_validation(overlay, folder / "cv", folder / "cache"),
            prepare=with_cache,
            watched="cv",
        ),
        Subject("postprocessing apply", lambda folder: samples.apply(ground.predictions, ground.rules, folder / "out")),
        Subject(
            "postprocessing determine",
            lambda folder: samples.determine(
                overlay, ground.predictions, ground.volumes / "labelsTr", folder / "rules.json"
            ),
        ),
        Subject(
            "report", lambda folder: samples.report(overlay, ground.predictions, ground.volumes, folder / "report")
        ),
        Subject(
            "finish",
            lambda folder: samples.finish(overlay, folder / "runs", ground.cache, images, folder / "out"),
            prepare=with_fold,
        ),
    ]


def measure(subject: Subject, ground: Ground, rng: random.Random) -> None:
    """Run a subject undisturbed: its time, its result, its events on the disk; and choose the kills from them."""
    folder = _fresh(subject, ground)
    began = time.monotonic()
    ground.must(subject.command(folder))
    subject.seconds = time.monotonic() - began
    subject.wanted = whole.contents(folder)
    sizes = sorted({file.stat().st_size for file in folder.rglob("*") if file.is_file()})
    folder, events = _fresh(subject, ground), ground.folder / "events.txt"
    server.run(subject.command(folder), ground.log, crash_points.record([folder / subject.watched], events))
    subject.events = events.read_text(encoding="utf-8").splitlines()
    watched = [folder / subject.watched]
    for number, event in enumerate(subject.events):
        for moment in ("before", "after"):
            subject.kills.append((f"{moment} {event}", crash_points.die(watched, number, moment)))
    for size in rng.sample(sizes, min(6, len(sizes))):
        at = rng.randrange(1, max(2, size))
        subject.kills.append((f"at byte {at}", crash_points.die_at_size(at)))
    rng.shuffle(subject.kills)


def run(ground: Ground, journal: Journal, rng: random.Random, until: float) -> None:
    """Kill all subjects in turns, in random order, until the time is up."""
    chosen = subjects(ground)
    rng.shuffle(chosen)
    rows: dict[str, Row] = {}
    while len(rows) < FEWEST or time.monotonic() < until:
        for subject in chosen:
            if len(rows) >= FEWEST and time.monotonic() > until:
                break
            if subject.name not in rows:
                rows[subject.name] = journal.row("kills", subject.name)
                measure(subject, ground, rng)
            _turn(subject, ground, journal, rows[subject.name], rng)
    for subject in chosen:
        if subject.kills and subject.name in rows:
            rows[subject.name].note = f"{len(subject.kills)} planned kills not reached in this time"


def _turn(subject: Subject, ground: Ground, journal: Journal, row: Row, rng: random.Random) -> None:
    """One kill: every second one at a random moment, as long as there are events to die at."""
    if subject.kills and rng.random() < 0.6:
        name, setup = subject.kills.pop()
        trial(subject, ground, journal, row, name, setup=setup)
    else:
        sign, delay = rng.choice(SIGNALS), rng.uniform(0.01, subject.seconds)
        trial(subject, ground, journal, row, f"{sign.name} after {delay:.3f} s", delay=delay, sign=sign)


def trial(
    subject: Subject,
    ground: Ground,
    journal: Journal,
    row: Row,
    name: str,
    setup: server.Setup | None = None,
    delay: float | None = None,
    sign: signal.Signals = signal.SIGKILL,
) -> None:
    """Kill a command once and judge. One that ended before it could be killed does not count."""
    folder = _fresh(subject, ground)
    ground.log.unlink(missing_ok=True)
    pid = server.start(subject.command(folder), ground.log, setup)
    status = server.wait(pid, server.LONGEST if delay is None else delay)
    if status is None:
        os.kill(pid, sign)
        status = server.wait(pid, PATIENCE)
    problems = {}
    if status is None:
        problems["does not end"] = f"still there {PATIENCE:.0f} s after {sign.name}"
    elif children := _orphans(pid):
        problems["children left"] = f"{len(children)} after {PATIENCE:.0f} s"
    ended = server.finish(pid, ground.log, 0) if status is None else None
    server.kill_group(pid)
    output = ended.output if ended else server.read(ground.log)
    if status == 0:
        return
    if "Traceback (most recent call last)" in output:
        problems["traceback"] = output[-300:]
    problems |= judge(subject, folder, ground)
    journal.trial(row, name, problems, status=status)


def judge(subject: Subject, folder: Path, ground: Ground) -> dict[str, str]:
    """What is wrong with the folder of a killed command, and with that of its second run."""
    problems = {}
    if broken := whole.broken_files(folder):
        problems["corrupt"] = ", ".join(broken)
    whole.age_leftovers(folder)
    ended = server.run((subject.again or subject.command)(folder), ground.log)
    if ended.status and "--overwrite" in ended.output:
        ended = server.run([*subject.command(folder), "--overwrite"], ground.log)
    if ended.status and "has done all its" not in ended.output:
        problems["not resumable"] = ended.output[-600:]
    elif changed := whole.differing(whole.contents(folder), subject.wanted):
        problems["another result"] = ", ".join(changed)
    if left := whole.leftovers(folder):
        problems["leftovers"] = ", ".join(str(path.relative_to(folder)) for path in left)
    return problems


def _orphans(group: int) -> list[int]:
    """Children that go on after their parent's end for longer than they may."""
    until = time.monotonic() + PATIENCE
    while (members := server.group_members(group)) and time.monotonic() < until:
        time.sleep(0.05)
    return members


def _fresh(subject: Subject, ground: Ground) -> Path:
    folder = ground.empty("killed")
    subject.prepare(folder)
    return folder
