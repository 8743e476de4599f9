"""The rooms of the house: what CONTRIBUTING's table says of bundle/scripts is how its files import each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "bundle/scripts"
ALONE = {"planning", "finish", "demo", "doctor"}  # commands whose parts nobody else uses
MOST_FILES = {"data": 14, ".": 6}


def floors(text: str) -> list[str]:
    """The parts of the table, from the one that imports none of the others on."""
    table = text.split("imports only what stands above it", 1)[1].split("\n\n")[1]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [part.rstrip("/").removesuffix(".py") for row in rows for part in re.findall(r"`([^`]+)`", row)]


def imports(scripts: Path) -> Iterator[tuple[str, str, str]]:
    """(importing part, imported part, file and line) of every import of ours, those inside functions too."""
    for file in sorted(scripts.rglob("*.py")):
        path = file.relative_to(scripts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for module in _modules(node, ("scripts", *path.parent.parts)):
                if module[0] == "scripts" and module[1:2] not in ([], [_part(path)]):
                    yield _part(path), module[1], f"{path}, line {node.lineno}"


def _part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _modules(node: ast.AST, package: tuple[str, ...]) -> list[list[str]]:
    if isinstance(node, ast.Import):
        return [name.name.split(".") for name in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = [*package[: len(package) + 1 - node.level]] if node.level else []
    base += (node.module or "").split(".") if node.module else []
    return [[*base, name.name] for name in node.names]


def upwards(scripts: Path, order: list[str]) -> list[str]:
    """The imports of a part that stands further down, or that nobody imports."""
    return [
        f"{where}: {part} imports {other}"
        for part, other, where in imports(scripts)
        if other in ALONE or order.index(other) > order.index(part)
    ]


def test_the_table_names_every_part_once() -> None:
    parts = {_part(path.relative_to(SCRIPTS)) for path in SCRIPTS.rglob("*.py")} - {"__init__"}
    assert sorted(floors((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) == sorted(parts)


def test_every_part_imports_only_what_stands_above_it() -> None:
    assert not upwards(SCRIPTS, floors((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert len(list(imports(SCRIPTS))) > 100


@pytest.mark.parametrize("folder", MOST_FILES)
def test_a_package_stays_small_enough_to_find_things_in(folder: str) -> None:
    assert len(list((SCRIPTS / folder).glob("*.py"))) <= MOST_FILES[folder]


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("from ..common.errors import UserError", True),
        ("from .. import common", True),
        ("from . import cases, files", True),
        ("from ..data.layouts import read_dataset", False),
        ("from .. import data", False),
        ("import scripts.data.layouts", False),
        ("from scripts import data", False),
        ("from ..planning.plan import Plan", False),
        ("def function():\n    from ...data import layouts", False),
    ],
)
def test_the_check_sees_an_import_that_leads_upwards(tmp_path: Path, code: str, right: bool) -> None:
    folder = tmp_path / ("images/formats" if "..." in code else "images")
    folder.mkdir(parents=True)
    (folder / "room.py").write_text(code, encoding="utf-8")
    assert (not upwards(tmp_path, ["common", "planning", "images", "data"])) is right
