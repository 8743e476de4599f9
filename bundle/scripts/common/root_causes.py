"""What an error is really about: the causes behind it, also those of other processes, and what can be done about it."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

__all__ = ["Cause", "causes", "known_reason", "lack_of_memory", "note_file", "root_cause"]

TRACEBACK = "Traceback (most recent call last):\n"
_BETWEEN = re.compile(r"\n\n(?:The above exception was the direct cause|During handling of the above exception)")
_SYSTEM = re.compile(r"\[(?:Errno|WinError) (\d+)\] ([^:]+)(?:: b?'([^']*)')?")
_TEMPORARY = re.compile(r"\.[0-9a-f]+(?:-\d+-[0-9a-f]+)?\.part\.?")  # in names that will be replaced

_NOTED = "_lightm_unet_file"  # attribute of an error: the file that was being written

_NO_ROOM = "make room, or choose another folder"
_NOT_ALLOWED = "mend its permissions, or choose another folder or file"
_FAILING = "the disk, or the network that it hangs on, fails; try again, or choose another folder"
_MEMORY = "memory ran out: close other programs, or take fewer --num_workers (--workers), a smaller patch or image"
_FILES = "too many open files: take fewer --num_workers, or allow more with ulimit -n"
_SHARED_MEMORY = (
    "the shared memory of the loader workers (/dev/shm) ran out: take --num_workers 0, or give the container more with "
    "--shm-size"
)
_ENDED = "another process, such as a loader worker, ended: if memory ran out, take fewer --num_workers"
_ADVICE = {
    "ENOSPC": _NO_ROOM,
    "EDQUOT": _NO_ROOM,
    "EFBIG": "the system limits how large a file may be (ulimit -f, a quota, the kind of disk); choose another folder",
    "EROFS": _NOT_ALLOWED,
    "EACCES": _NOT_ALLOWED,
    "EPERM": _NOT_ALLOWED,
    "EIO": _FAILING,
    "ESTALE": _FAILING,
    "ENOENT": "it is not there, or went away meanwhile",
    "ENOMEM": _MEMORY,
    "EMFILE": _FILES,
    "ENFILE": _FILES,
    "ECONNREFUSED": _ENDED,
    "ECONNRESET": _ENDED,
    "EPIPE": _ENDED,
    "ELOOP": "its links lead in a circle",
    "ENAMETOOLONG": "choose a shorter name",
}

# What libraries say without an error number -> what it means. The first that is found counts.
_SAYINGS = {
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED": "the GPU's memory ran out: take a "
    "smaller --batch_size or patch_size (for inference: --sw_batch_size 1), or free the GPU of other programs",
    r"failed to map segment from shared object|codec configuration error when writing": _MEMORY,  # dlopen's, Pillow's
    r"could not (?:create|execute) a primitive|^encoding error 1$": _MEMORY,  # oneDNN's, WebP's
    r"shared memory|unable to write to file </torch_|torch_shm_manager": _SHARED_MEMORY,
    r"DataLoader worker .*(killed by signal|exited unexpectedly)": "a loader worker was killed, most likely because "
    "memory ran out: take fewer --num_workers",
    r"Error -4 while": _MEMORY,  # zlib's
    r"DefaultCPUAllocator|can't allocate memory|not enough memory|bad_alloc|Unable to alloc|annot allocate": _MEMORY,
    r"without setting an exception|error return without exception set": "a library failed and did not say why, most "
    "likely because memory ran out: take fewer --num_workers, a smaller patch or image",
    r"received 0 items of ancdata|[Tt]oo many open files": _FILES,
    r"can't start new thread": "the system allows no more threads, or has no memory for them: take fewer "
    "--num_workers, or allow more with ulimit -u",
    r"Parent directory .* does not exist": "the folder went away meanwhile",
    r"PytorchStreamWriter failed|inline_container|\d+ requested and \d+ written|file write failed": "a file could not "
    f"be written whole, most likely because the disk is full: {_NO_ROOM}",
    r"detected circular references|the referring item .* is not defined": "",
}


class Cause(NamedTuple):
    """One of the errors behind an error.

    Attributes:
        kind: name of its class, without the module.
        message: its words.
        error: the error itself, None if it was another process's.
    """

    kind: str
    message: str
    error: BaseException | None = None

    def __str__(self) -> str:
        """Kind and the first line of the message, if it has one."""
        return ": ".join([self.kind, *self.message.splitlines()[:1]])


def causes(error: BaseException | None) -> list[Cause]:
    """The errors behind ``error``, the innermost first and itself last.

    Libraries wrap an error again and again, and other processes hand theirs on as text: as the message of an error
    of the same kind (loader workers) or as its cause (process pools).
    """
    found: list[Cause] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        words = str(error)
        within = list(_in_text(words))
        found += within[::-1] or [Cause(type(error).__name__, words, error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found[::-1]


def root_cause(error: BaseException) -> Cause:
    """The innermost error that says something."""
    return next((cause for cause in causes(error) if cause.message), causes(error)[0])


def known_reason(error: BaseException) -> str | None:
    """What is wrong and what to do, in one line, if the cause lies with the machine or with a setting: disk, memory,
    permissions, killed workers, a config's expressions; None for anything else, which may be a mistake of ours.
    """
    chain = causes(error)
    found = ((_of_machine(*pair), pair[0]) for pair in zip(chain, [*chain[1:], None], strict=True))
    reason, cause = next((pair for pair in found if pair[0]), (None, chain[0]))
    if reason is None:
        return next(filter(None, map(_of_config, chain)), None)
    file = next((str(file) for other in chain if (file := getattr(other.error, _NOTED, None))), None)
    if file is None:
        return f"{_library(cause)}{reason}"
    return reason if file in reason else f"{file} cannot be written: {reason}"


def lack_of_memory(error: BaseException) -> str | None:
    """What to do if it was memory that ran out, which readers of files wrap like errors of a broken file; else None."""
    return _MEMORY if any(_MEMORY in (_of_machine(cause, None) or "") for cause in causes(error)) else None


def note_file(error: BaseException | None, path: str | Path) -> None:
    """Remember with an error which file was being written: most errors of a full disk do not say it themselves."""
    if error is not None and not hasattr(error, _NOTED):
        setattr(error, _NOTED, path)


def _in_text(words: str) -> Iterator[Cause]:
    """The causes in a printed traceback, the innermost first."""
    for block in words.split(TRACEBACK)[1:]:
        lines = _BETWEEN.split(block)[0].rstrip('"\n').splitlines()
        said = next((i for i, line in enumerate(lines) if line and not line.startswith((" ", "\t"))), None)
        if said is not None:
            kind, _, message = lines[said].partition(": ")
            yield Cause(kind.rpartition(".")[2], "\n".join([message, *lines[said + 1 :]]).rstrip())


def _of_machine(cause: Cause, next_one: Cause | None) -> str | None:
    """The reason in a cause; of two errors of the system the later one has it, as of mkdir, which tries two folders."""
    later = next_one is not None and isinstance(next_one.error, OSError) and _of_system(next_one) is not None
    return None if later else _of_system(cause) or _of_library(cause)


def _of_system(cause: Cause) -> str | None:
    match = _SYSTEM.search(cause.message)
    if match is None:
        return None
    name, said, file = errno.errorcode.get(int(match[1]), ""), match[2], match[3]
    if (file and "/torch_" in file) or _makes_semaphore(cause.error):  # a tensor on its way from a loader worker
        return _SHARED_MEMORY
    place = f"{_TEMPORARY.sub('', file)}: " if file else ""
    return f"{place}{said}" + (f": {_ADVICE[name]}" if name in _ADVICE else "")


def _makes_semaphore(error: BaseException | None) -> bool:
    """Whether one of the locks between processes, which are files in /dev/shm, could not be made."""
    frames = list(traceback.walk_tb(error.__traceback__)) if error is not None else []
    return bool(frames) and frames[-1][0].f_globals.get("__name__") == "multiprocessing.synchronize"


def _library(cause: Cause) -> str:
    """Which library met an error of the system that names no file, such as "tensorboard: "; nothing for ours."""
    system = _SYSTEM.search(cause.message)
    if system is None or system[3]:
        return ""
    frames = list(traceback.walk_tb(cause.error.__traceback__)) if cause.error is not None else []
    names = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame, _ in frames]
    foreign = [name for name in names if name not in sys.stdlib_module_names and name not in ("scripts", "__main__")]
    return f"{foreign[-1]}: " if foreign else ""


def _of_library(cause: Cause) -> str | None:
    if cause.kind == "MemoryError":
        return _MEMORY
    for saying, meaning in _SAYINGS.items():
        if re.search(saying, cause.message):
            own = cause.message.splitlines()[0].strip()
            return f"{meaning} ({own})" if meaning else own
    return None


def _of_config(cause: Cause) -> str | None:
    """An expression or a foreign component of a config that fails with the values it was given."""
    if isinstance(cause.error, SyntaxError) and cause.error.filename in ("<unknown>", "<string>"):
        return f"{(cause.error.text or '').strip()} in the config is no Python expression ({cause.error.msg}): mend it"
    if cause.error is None or cause.error.__cause__ is None:
        return None
    expression = re.match(r"Failed to evaluate \w+:\s*(.*)", cause.message, re.DOTALL)  # MONAI's words
    if expression and _only_python(cause.error.__cause__):
        text = re.sub(r"__local_refs\['([^']*)'\]", r"@\1", " ".join(expression[1].split()).strip("\"'"))
        return f"{text} in the config cannot be evaluated ({root_cause(cause.error)}): check the settings that it names"
    component = re.match(r"Failed to instantiate component '([^']+)'", cause.message)
    if component and not component[1].startswith("scripts."):
        return f"{component[1]} in the config does not take its settings ({root_cause(cause.error)}): check those"
    return None


def _only_python(error: BaseException) -> bool:
    """Whether an expression failed by itself or in Python's own library, and not in a run that it started."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    evaluated = [i for i, frame in enumerate(frames) if frame.f_code.co_filename == "<string>"]
    return bool(evaluated) and all(map(_of_python, frames[evaluated[0] + 1 :]))


def _of_python(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return name in sys.stdlib_module_names or frame.f_code.co_filename == "<string>"
