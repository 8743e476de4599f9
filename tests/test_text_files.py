"""Every text file is read and written in an encoding that the code names, and never in the one of the system."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPENERS = {"open", "read_text", "write_text", "fdopen", "FileHandler", "NamedTemporaryFile", "TemporaryFile"}
OTHERS = {("Image", "open"), ("os", "open"), ("webbrowser", "open")}  # no text


def calls_without_encoding(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
        modes = [arg.value for arg in (*node.args, *(k.value for k in node.keywords)) if isinstance(arg, ast.Constant)]
        binary = any(isinstance(mode, str) and len(mode) < 4 and "b" in mode for mode in modes)
        named = any(keyword.arg == "encoding" for keyword in node.keywords)
        if name in OPENERS and (owner, name) not in OTHERS and not named and not binary:
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


@pytest.mark.parametrize("folder", ["bundle", "benchmarks"])
def test_every_text_file_has_an_encoding(folder: str) -> None:
    found = {
        str(file.relative_to(ROOT)): calls
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (calls := list(calls_without_encoding(file.read_text(encoding="utf-8"))))
    }
    configs = [file.name for file in (ROOT / folder).glob("configs/*.json") if "read_text()" in file.read_text("utf-8")]
    assert not found and not configs


@pytest.mark.parametrize(
    "code", ["open(p)", "p.open('w')", "p.read_text()", "p.write_text(t)", "logging.FileHandler(p)"]
)
def test_the_check_sees_a_missing_one(code: str) -> None:
    assert list(calls_without_encoding(code))


@pytest.mark.parametrize("code", ["open(p, 'rb')", "p.open('w', encoding='utf-8')", "Image.open(p)", "os.open(p, 0)"])
def test_the_check_lets_others_pass(code: str) -> None:
    assert not list(calls_without_encoding(code))
