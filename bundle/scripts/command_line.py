"""What every ``python -m monai.bundle run`` of this bundle does first."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import json
import logging
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from .errors import UserError, show_user_errors_plainly

__all__ = [
    "as_config_files",
    "as_flag",
    "as_typed",
    "check_ids",
    "check_separator",
    "check_words",
    "differing",
    "option_values",
    "or_none",
    "start",
]

# Arguments of `monai.bundle run` itself.
_RUN_ARGUMENTS = (
    "run_id init_id final_id meta_file config_file logging_file tracking args_file workflow_type help".split()
)

# The config that defines what a user runs.
_RUNS = {"training": "train.json", "evaluating": "evaluate.json", "inference": "inference.json"}


def start() -> None:
    """Show user errors in one line and refuse mistyped ids on a ``monai.bundle`` command line.

    Stands in ``initialize``, and in ``run`` again: a word too many, as in ``--checkpoint a.pt b.pt``, is to MONAI the
    name of another ``initialize``.
    """
    main_spec = getattr(sys.modules["__main__"], "__spec__", None)
    if main_spec is None or not main_spec.name.startswith("monai.bundle"):
        return  # inside another program (MONAI Label, a notebook): its errors and arguments are its own
    show_user_errors_plainly()
    _keep_freed_memory()
    logging.getLogger("ignite").setLevel(logging.ERROR)
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # the error itself is shown once, at the end
    check_ids(sys.argv[1:])


def check_ids(arguments: Sequence[str]) -> None:
    """Refuse an override whose top-level id no given config file defines, which MONAI would accept and ignore, a
    folder that it would read as something else (2024.10 as a number, out#2 as out), several words after an option,
    and a run that no given file defines.

    Args:
        arguments: the command line after ``python -m monai.bundle``.

    Raises:
        UserError: names the unknown id and the nearest known one, or how to write it.
    """
    given = option_values(arguments)
    overrides = {name: value for name, value in given.items() if name not in _RUN_ARGUMENTS}
    files = as_config_files(given.get("config_file"))
    if "args_file" in given:
        from_file = json.loads(Path(given["args_file"]).read_text())
        files = files or as_config_files(from_file.pop("config_file", None))
        for name, value in from_file.items():
            check_separator(name, str(value))
        overrides |= {name: "" for name in from_file if name not in _RUN_ARGUMENTS}
    known = set(ConfigParser.load_config_files(files)) | {"_meta_"} if files else set()
    for name, value in overrides.items():
        if value == "None":
            raise UserError(f"--{name} None: MONAI drops such a setting; write --{name} null")
        check_separator(name, value)
        if name.endswith("_dir") and (read := DefaultParseValue(value)) != value:
            raise UserError(f"--{name} {value}: MONAI reads it as {read!r}; write --{name} ./{value}")
        top_level = name.replace("::", "#").split("#")[0]
        if known and top_level not in known:
            raise UserError(f"--{name}: no config file defines the id '{top_level}'{_suggest(top_level, known)}")
    if known:
        check_words(arguments, allowed=known)
        _check_run(given.get("run_id", "".join(arguments[1:2])), known)


def check_separator(name: str, value: str) -> None:
    """Refuse a value with a ``#``, which MONAI changes to ``::`` wherever it stands: /x/out#2 would be /x/out::2.

    Raises:
        UserError: says what to do instead.
    """
    refers = set(value) & set("@%$") or value.lstrip().startswith("{")  # there it may lead to a part of a config
    if "#" in value and not refers:
        raise UserError(f"--{name} {value}: MONAI reads # as ::, so rename it, or give a link to it without #")


def check_words(arguments: Sequence[str], allowed: Container[str] = ()) -> None:
    """Refuse several words after an option, of which all but the first would be taken for something else.

    Raises:
        UserError: says how several values of the option are written.
    """
    options: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            options.append(argument.split("=", 1))
        elif options:
            options[-1].append(argument)
    for option, *values in options:
        if any(value not in allowed for value in values[1:]):
            several = [DefaultParseValue(value) for value in values]
            raise UserError(f'{option} {" ".join(values)}: write several values as one list, {option} "{several}"')


def as_flag(value: bool | int | str | None, name: str = "the value") -> bool:
    """Read true/false as typed on a command line, where MONAI hands on the string 'false'.

    Raises:
        UserError: the value is neither true nor false.
    """
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "none": False}
    word = str(value).lower()
    if word not in words:
        raise UserError(f"{name} must be true or false, not {value!r}")
    return words[word]


def or_none(value: Any) -> Any:
    """None for the word 'null', which is how a command line can say it (MONAI drops None itself)."""
    return None if isinstance(value, str) and value.lower() in ("null", "none") else value


def as_typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of which some were typed: the words null, true and false stand for what they mean in a config."""
    words = {"null": None, "true": True, "false": False}
    return {
        key: words.get(value.lower(), value) if isinstance(value, str) else value for key, value in settings.items()
    }


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that are in both and differ, typed on a command line, as Python or as JSON keeps them."""
    before, now = (as_typed(json.loads(json.dumps(settings))) for settings in (before, now))
    return [key for key in now if key in before and before[key] != now[key]]


def _check_run(run_id: str, known: Container[str]) -> None:
    if run_id in _RUNS and run_id not in known:
        raise UserError(f"{run_id} is defined in configs/{_RUNS[run_id]}: name it in --config_file")


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory: a scan frees and takes large tensors again and again on a CPU, and new
    pages from the system cost more than the arithmetic on them. Does nothing where there is no glibc."""
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def option_values(arguments: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value`` pairs; Fire reads a dash inside a name as an underscore."""
    values: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        name, equals, value = argument[2:].partition("=")
        if not equals and position + 1 < len(arguments):
            value = arguments[position + 1]
        values[name.replace("-", "_")] = value
    return values


def as_config_files(value: str | Iterable[str] | None) -> list[str]:
    """A config_file argument as a list of paths: ``a.json`` or ``['a.json','b.json']``."""
    if value is None:
        return []
    if not isinstance(value, str):
        return list(value)
    if not value.strip().startswith(("[", "(")):
        return [value]
    return [part.strip(" '\"") for part in value.strip(" []()").split(",") if part.strip(" '\"")]


def _suggest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
