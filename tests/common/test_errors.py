"""What is behind an error, and which errors a user sees in one line."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import re
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch.utils.data import DataLoader, Dataset

from scripts.common.errors import (
    UserError,
    find_user_error,
    first_few,
    in_one_line,
    note_file,
    one_line_reason,
    show_user_errors_plainly,
)
from scripts.common.leftovers import temporary_beside


def system_error(name: str, *file: str) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), *file)


def caught(function: Any, *arguments: Any) -> Exception:
    with pytest.raises(Exception) as info:
        function(*arguments)
    return info.value


def fail(error: Exception) -> None:
    """As MONAI does it: the error wrapped in that of a transform."""

    def raise_it(_: Any) -> None:
        raise error

    Compose([raise_it])({})


class Failing(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        fail(self.error)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ("abc", {"most": 3}, "a, b, c"),
        ("abcd", {"most": 3}, "a, b, c, …"),
        ("abcde", {"most": 3, "counted": True}, "a, b, c, … and 2 more"),
        ("abcd", {"most": 2, "between": "\n  ", "counted": True}, "a\n  b\n  … and 2 more"),
        (range(7), {}, "0, 1, 2, 3, 4, …"),
        ((), {"counted": True}, ""),
    ],
)
def test_a_list_of_names_is_shortened_where_it_is_longer_than_asked(names: Any, options: Any, expected: str) -> None:
    assert first_few(names, **options) == first_few(iter(names), **options) == expected


def test_the_innermost_reason_is_shown_and_not_the_wrapper() -> None:
    assert in_one_line(caught(fail, ValueError("odd shape\nmore"))) == "ValueError: odd shape"
    assert in_one_line(caught(fail, UserError("a.nii is missing"))) == "a.nii is missing"


@pytest.mark.parametrize("error", [UserError("a.nii is bad\n  in two ways"), system_error("EACCES", "/x/a b.nii")])
def test_a_loader_worker_hands_its_reason_on(error: Exception) -> None:
    here = in_one_line(caught(fail, error))
    there = caught(list, DataLoader(Failing(error), num_workers=1))
    assert in_one_line(there) == one_line_reason(there) == here


def test_a_pool_hands_its_reason_on() -> None:
    with ProcessPoolExecutor(1) as pool:
        error = caught(pool.submit(fail, UserError("a.nii is bad")).result)
    assert str(find_user_error(error)) == "a.nii is bad"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (system_error("ENOSPC", "/x/.0123456789ab.part.a.nii"), r"^/x/a.nii: No space left on device: make room"),
        (
            system_error("EISDIR", str(temporary_beside(Path("/x/a.nii")))),
            r"^/x/a.nii: Is a directory",
        ),
        (system_error("EFBIG"), r"File too large: the system limits"),
        (system_error("EROFS", "/x"), r"^/x: Read-only file system: mend its permissions"),
        (system_error("EMFILE"), r"too many open files: .* ulimit -n"),
        (system_error("ENOENT", b"/x/events"), r"^/x/events: No such file or directory: it is not there"),
        (ImportError("/x/_agg.so: failed to map segment from shared object"), r"^memory ran out: "),
        (OSError("codec configuration error when writing image file"), r"^memory ran out: "),
        (RuntimeError("could not create a primitive"), r"^memory ran out: "),
        (MemoryError(), r"^memory ran out: "),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
            "memory ran",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), r"^the GPU's memory .*--batch_size"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            r"was killed, .* fewer --num_workers",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. … out of shared memory"),
            "--shm-size",
        ),
        (RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"), "--num_workers 0"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"), "the disk is full"),
        (OSError("1024 requested and 512 written"), "the disk is full"),
        (SystemError("<built-in function f> returned NULL without setting an exception"), "because memory ran out"),
    ],
)
def test_what_the_machine_lacks_is_one_line_that_says_what_to_do(error: Exception, reason: str) -> None:
    shown = one_line_reason(caught(fail, error))
    assert shown is not None and "\n" not in shown and re.search(reason, shown), shown


def test_no_room_for_the_locks_of_workers_is_one_of_shared_memory() -> None:
    error = caught(multiprocessing.get_context("fork").Semaphore, -1)  # too many for a semaphore
    assert isinstance(error, OSError) and "--shm-size" in str(one_line_reason(error))


def test_what_goes_wrong_in_a_destructor_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfMade:
        def __del__(self) -> None:
            raise AttributeError("no _shutdown")

    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    show_user_errors_plainly()
    HalfMade()
    assert capsys.readouterr().err == "\nwarning: AttributeError: no _shutdown (while cleaning up)\n"


@pytest.mark.parametrize(
    ("first", "later", "lines"),
    [
        (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1),
        (RuntimeError("can't start new thread"), RuntimeError("can't start new thread"), 1),
        (MemoryError(), AttributeError("no _shutdown"), 2),
    ],
)
def test_what_a_destructor_repeats_is_said_once(
    first: Exception, later: Exception, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfMade:
        def __del__(self) -> None:
            raise later

    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    show_user_errors_plainly()
    sys.excepthook(type(first), first, None)
    HalfMade()
    assert len(capsys.readouterr().err.strip().split("\n\n")) == lines


def test_the_file_that_was_being_written_is_named() -> None:
    error = system_error("ENOSPC")
    note_file(error, Path("/x/model.pt"))
    assert str(one_line_reason(caught(fail, error))).startswith("/x/model.pt cannot be written: No space left")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"a": "@b", "b": "@a"}, "detected circular references"),
        ({"a": "@gone"}, "`@gone` is not defined"),
        ({"a": "$len(@b)", "b": 5}, r"len(@b) in the config cannot be evaluated (TypeError: object of type 'int'"),
        ({"a": "$1 +"}, "1 + in the config is no Python expression (invalid syntax)"),
        ({"a": {"_target_": "torch.nn.Linear", "in_features": "x"}}, "torch.nn.Linear in the config does not take its"),
    ],
)
def test_a_config_that_cannot_be_used_names_the_place(config: dict[str, Any], reason: str) -> None:
    shown = one_line_reason(caught(ConfigParser(config).get_parsed_content, "a"))
    assert shown is not None and reason in shown and "\n" not in shown, shown


@pytest.mark.parametrize("mistake", [TypeError("NoneType"), KeyError("case"), ValueError("not ours to hide")])
def test_a_mistake_of_ours_keeps_its_traceback(mistake: Exception) -> None:
    assert one_line_reason(caught(fail, mistake)) is None


def test_an_output_that_cannot_hold_a_name_escapes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    show_user_errors_plainly()
    print("脑/\udcff.nii", flush=True)
    assert written.getvalue().strip() == rb"\u8111/\udcff.nii"
