"""Commands that have to refuse something: each in one line that names the file or the key, with nothing harmed."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from . import server, whole
from .ground import Ground
from .samples import Words
from .table import Journal, Row

FEWEST = 2  # scenarios that are tried, however short the time
_MESSAGE = re.compile(r"^(error: |\S.*: error: )")
_LOGGED = re.compile(r"^(\S+ )?ERROR\b|^\d+ errors?$")
_RAISED = re.compile(r"^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b.*", re.MULTILINE)
_OUTER = "(its message stands above)"  # how cross-validation closes after a run that failed


@dataclass
class Scenario:
    """A command that must not succeed.

    Attributes:
        name: says what is wrong.
        command: the words; what they write goes into ground.out, which is removed before.
        named: the message must hold one of these.
        setup: called in the child first.
        may_succeed: an answer is fine too (a fault that a command can work round).
        may_crash: so is an end by SIGSEGV: libraries in C do not look at what they get of no memory.
        prepare: called first of all, for example to fill ground.out.
        around: what the command runs in, such as a disk that is small.
        act: called beside the running child with its process id, to do something to it.
        broken: names in ground.out of files that the scenario itself broke.
        then: looks at what the command left; returns a complaint or None.
    """

    name: str
    command: Words
    named: tuple[str, ...]
    setup: server.Setup | None = None
    may_succeed: bool = False
    may_crash: bool = False
    prepare: Callable[[], object] = lambda: None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    act: Callable[[int], None] | None = None
    broken: tuple[str, ...] = ()
    then: Callable[[], str | None] = lambda: None


def run_all(
    scenarios: Iterable[Scenario], ground: Ground, journal: Journal, row: Row, rng: random.Random, until: float
) -> None:
    """Try scenarios in random order until the time is up."""
    shuffled = list(scenarios)
    rng.shuffle(shuffled)
    before, copies = _kept(ground), ground.empty("copies")
    for folder in _kept_folders(ground):
        shutil.copytree(folder, copies / folder.name)
    for scenario in shuffled:
        if row.trials >= FEWEST and time.monotonic() > until:
            break
        ended, problems = _run(scenario, ground)
        now = _kept(ground)
        if changed := whole.differing(now, before):
            problems["harmed"] = ", ".join(changed)
            for folder in _kept_folders(ground):
                shutil.rmtree(folder)
                shutil.copytree(copies / folder.name, folder)
        journal.trial(row, scenario.name, problems, status=ended.status, said=message(ended.output)[:400])
    if row.trials < len(shuffled):
        row.note = f"{len(shuffled) - row.trials} of {len(shuffled)} not reached in this time"


def judge(ended: server.Ended, named: tuple[str, ...], may_succeed: bool = False) -> dict[str, str]:
    """What is wrong with the way in which a command refused (kind -> detail)."""
    said, problems = message(ended.output), {}
    if ended.traced:
        named_errors = _RAISED.findall(ended.output)
        return {"traceback": " / ".join(dict.fromkeys(named_errors))[:300]}
    if ended.status == -signal.SIGABRT and "std::bad_alloc" in ended.output:
        return {}  # a library in C++ that gets no memory ends the process itself, in one line
    if ended.status == server.TIMED_OUT:
        return {"does not end": said[-300:]}
    if ended.status == 0:
        return {} if may_succeed else {"accepted": ended.output.strip()[-200:]}
    if not said:
        return {"no message": f"status {ended.status}: {ended.output.strip()[-300:]}"}
    if len([line for line in said.splitlines() if not line.startswith(" ") and _OUTER not in line]) > 1:
        problems["several lines"] = said[:500]
    if not any(word in said for word in named):
        problems["names neither file nor key"] = f"none of {', '.join(named)} in: {said[:300]}"
    return problems


def message(output: str) -> str:
    """The message that a command ends with, and the lines of its list, which are indented; empty if there is none."""
    lines = [line for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if _MESSAGE.match(line):
            return "\n".join(lines[number:])
    logged = [number for number, line in enumerate(lines) if _LOGGED.match(line)]
    if not logged:
        return ""
    last = logged[-1]
    more = next((n for n in range(last + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return "\n".join(lines[last:more])


def _run(scenario: Scenario, ground: Ground) -> tuple[server.Ended, dict[str, str]]:
    ground.log.unlink(missing_ok=True)
    ground.clear_out()
    scenario.prepare()
    with scenario.around():
        pid = server.start(scenario.command, ground.log, scenario.setup)
        if scenario.act:
            scenario.act(pid)
        ended = server.finish(pid, ground.log, 60)
        problems = judge(ended, scenario.named, scenario.may_succeed)
        if scenario.may_crash and ended.status == -signal.SIGSEGV:
            problems = {}
        if complaint := scenario.then():
            problems["afterwards"] = complaint
        broken = [file for file in whole.broken_files(ground.out) if not file.startswith(scenario.broken)]
        if broken:
            problems["corrupt"] = ", ".join(broken)
    return ended, problems


def _kept_folders(ground: Ground) -> list[Path]:
    """What no scenario may change."""
    return [ground.volumes, ground.pictures, ground.run, ground.predictions.parent]


def _kept(ground: Ground) -> dict[str, str]:
    """Digests of its files."""
    folders = _kept_folders(ground)
    return {f"{folder.name}/{name}": value for folder in folders for name, value in whole.raw_contents(folder).items()}
