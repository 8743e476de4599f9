"""What every ``python -m monai.bundle run`` of this bundle does first."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import difflib
import functools
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from .errors import UserError, show_user_errors_plainly
from .workers import end_children_with_this_process, end_with_cross_validation

__all__ = [
    "as_config_files",
    "as_flag",
    "as_typed",
    "check_ids",
    "check_separator",
    "check_words",
    "differing",
    "from_words",
    "number_from_zero",
    "option_values",
    "or_none",
    "start",
    "whole_number",
]

Result = TypeVar("Result")

# Arguments of `monai.bundle run` itself.
_RUN_ARGUMENTS = (
    "run_id init_id final_id meta_file config_file logging_file tracking args_file workflow_type workflow_name "
    "properties_path help".split()
)
# Ids that it adds to a config with `--tracking`, and some of our configs then have.
_TRACKING_IDS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}

# Options that name files and folders, as every option whose name ends in _dir does.
_PATHS = {"bundle_root", "checkpoint", "pretrained", "splits", "task_file", "weights", "postprocessing_rules"}
_MARKS = {"$": "runs it as Python", "@": "takes it for another setting", "%": "takes it for a part of a config"}

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
    end_with_cross_validation()
    end_children_with_this_process()
    _keep_freed_memory()
    logging.getLogger("dev_collate").setLevel(logging.CRITICAL + 1)  # MONAI's, beside the error that follows anyway
    logging.raiseExceptions = False  # a line that cannot be logged, on a full disk, is no reason for a traceback
    logging.getLogger("ignite").setLevel(logging.ERROR)
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)  # the error itself is shown once, at the end
    check_ids(sys.argv[1:])


def check_ids(arguments: Sequence[str]) -> None:
    """Refuse an override whose top-level id no given config file defines, which MONAI would accept and ignore, a
    folder that it would read as something else (2024.10 as a number, out#2 as out) or run ($name), several words
    after an option, and a run that no given file defines.

    Args:
        arguments: the command line after ``python -m monai.bundle``.

    Raises:
        UserError: names the unknown id and the nearest known one, or how to write it.
    """
    given = option_values(arguments)
    overrides = {name: value for name, value in given.items() if name not in _RUN_ARGUMENTS}
    files = as_config_files(given.get("config_file"))
    run_id = given.get("run_id", "".join(word for word in arguments[1:2] if not word.startswith("-")))
    if "args_file" in given:
        from_file = _read_args(given["args_file"])
        run_id = run_id or str(from_file.get("run_id", ""))
        files = files or as_config_files(from_file.pop("config_file", None))
        for name, value in from_file.items():
            check_separator(name, str(value))
        paths = {name: str(value) for name, value in from_file.items() if value is not None and _is_path(name)}
        overrides = {name: "" for name in from_file if name not in _RUN_ARGUMENTS} | paths | overrides
    parts = _config_parts(files)
    known = {*parts, *_TRACKING_IDS, "_meta_"} if files else set()
    for name, value in overrides.items():
        if value == "None":
            raise UserError(f"--{name} None: MONAI drops such a setting; write --{name} null")
        check_separator(name, value)
        if _is_path(name):
            _check_path(name, value)
        top_level = name.replace("::", "#").split("#")[0]
        if known and top_level not in known:
            raise UserError(f"--{name}: no config file defines the id '{top_level}'{_suggest(top_level, known)}")
        _check_part(f"--{name}", parts.get(name), DefaultParseValue(value))
    if known:
        check_words(arguments, allowed=known)
        _check_run(run_id or "run", parts)


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


def from_words(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a component of a config be built from words of a command line, where MONAI hands on null, true and false as
    texts: they become what they mean for the parameters whose annotations allow None or a bool.

    Raises:
        UserError: (of the function) a parameter that is a bool is neither true nor false.
    """
    parameters = inspect.signature(function).parameters
    annotations = {name: str(parameter.annotation) for name, parameter in parameters.items()}

    def typed(name: str, value: Any) -> Any:
        annotation = annotations.get(name, "")
        value = or_none(value) if "None" in annotation else value
        return as_flag(value, name) if "bool" in annotation and value is not None else value

    @functools.wraps(function)
    def with_types(*args: Any, **kwargs: Any) -> Result:
        named = zip(parameters, args)  # none of them takes any number of arguments
        return function(*(typed(*pair) for pair in named), **{name: typed(name, kwargs[name]) for name in kwargs})

    return with_types


def whole_number(text: str, least: int = 0) -> int:
    """The type of an argparse option that counts something.

    Raises:
        argparse.ArgumentTypeError: the text is no whole number, or a smaller one.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text}")
    return int(text)


def number_from_zero(text: str, expected: str = "a number from 0") -> float:
    """The type of an argparse option that measures something.

    Args:
        expected: what the message says that it must be.

    Raises:
        argparse.ArgumentTypeError: the text is no number, or one below 0 or infinite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text}")
    return value


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that are in both and differ, typed on a command line, as Python or as JSON keeps them."""
    before, now = (as_typed(json.loads(json.dumps(settings))) for settings in (before, now))
    return [key for key in now if key in before and before[key] != now[key]]


def _is_path(name: str) -> bool:
    return name.endswith("_dir") or name in _PATHS


def _config_parts(files: Sequence[str]) -> dict[str, Any]:
    """What the config files define, each id as the last of them has it."""
    parts: dict[str, Any] = {}
    for file in files:
        try:
            content = ConfigParser.load_config_file(file).items()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"--config_file: {file} cannot be read as a config: {error}") from error
        for key, value in content:
            name = key.removeprefix("+")  # MONAI's mark of what is added to an earlier file's
            _check_part(f"{file}: {name}", parts.get(name), value)
            parts[name] = value
    return parts


def _check_part(name: str, before: Any, now: Any) -> None:
    """Refuse a plain value in place of a part of a config that is built from objects."""
    built = _is_built(before) or (name.lstrip("-") == "network" and before is not None)
    if built and not (_is_built(now) or _is_reference(now) or (isinstance(before, list) and now == [])):
        raise UserError(
            f"{name} {now}: that is a part of the config and no plain value; leave it out, or write its object"
        )


def _is_built(value: Any) -> bool:
    if isinstance(value, dict) and "_target_" in value:
        return True
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_built(part) or _is_reference(part) for part in parts)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in _MARKS


def _check_path(name: str, value: str) -> None:
    read = DefaultParseValue(value)
    several = name == "checkpoint" and isinstance(read, (list, tuple))
    for path in map(str, read if several else [value]):
        if path[:1] in _MARKS:
            raise UserError(f"--{name} {value}: MONAI {_MARKS[path[0]]}; write './{path}'")
    if read != value and not several:
        raise UserError(f"--{name} {value}: MONAI reads it as {read!r}; write --{name} ./{value}")


def _read_args(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--args_file {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f'--args_file {file} must hold an object {{"option": value, …}}')
    return content


def _check_run(run_id: str, parts: Mapping[str, Any]) -> None:
    """Refuse a run that MONAI would not find, or whose part of the config it would build and then do nothing."""
    if "#" in run_id or "::" in run_id or _does_something(run_id, parts):
        return
    if run_id in _RUNS:
        raise UserError(f"{run_id} is defined in configs/{_RUNS[run_id]}: name it in --config_file")
    runs = [name for name in parts if isinstance(parts[name], (list, str)) and _does_something(name, parts)]
    what = "is a part of the config, and nothing that runs" if run_id in parts else "is not defined in any config file"
    raise UserError(f"run {run_id}: {run_id} {what}{_suggest(run_id, runs)}")


def _does_something(name: str, parts: Mapping[str, Any]) -> bool:
    value = parts.get(name)
    if isinstance(value, str) and value.startswith("@"):
        return value[1:] != name and _does_something(value[1:], parts)
    return isinstance(value, list) or str(value).startswith("$") or (isinstance(value, dict) and "_target_" in value)


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
