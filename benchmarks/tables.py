"""Writes the figures of the documents between their markers, from the committed records: `make tables`.

    python benchmarks/tables.py

A marker is an HTML comment, which a reader of the page does not see:

    <!-- figures: lungs -->
    ...everything here is written by table_registry.TABLES["lungs"]...
    <!-- end of figures -->

A test fails where a document differs from what is written here, so nobody types a figure by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "bundle"), str(REPOSITORY / "benchmarks")]
DOCUMENTS = (
    "README.md",
    "benchmarks/README.md",
    "bundle/docs/README.md",
    "bundle/docs/bring_your_own_data.md",
    "bundle/docs/onnx.md",
)
END = "<!-- end of figures -->"
BLOCK = re.compile(rf"^<!-- figures: (?P<name>.+?) -->\n(?P<body>.*?)^{END}$", flags=re.MULTILINE | re.DOTALL)


def names(text: str) -> list[str]:
    """Of the blocks of a document.

    Raises:
        ValueError: a marker is not one of a pair, each on a line of its own.
    """
    found = [match["name"] for match in BLOCK.finditer(text)]
    if not len(found) == text.count("<!-- figures:") == text.count(END):
        raise ValueError(f"a line <!-- figures: NAME --> or {END} without the other one")
    return found


def written(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The document with each block's figures as they are now.

    Raises:
        ValueError: a marker without its pair, or a name that no table has.
    """
    if unknown := sorted(set(names(text)) - set(tables)):
        raise ValueError(f"no table is called {', '.join(unknown)}: table_registry.py holds {', '.join(tables)}")
    return BLOCK.sub(lambda block: f"<!-- figures: {block['name']} -->\n{tables[block['name']]()}\n{END}", text)


def main() -> None:
    from table_registry import TABLES

    for document in DOCUMENTS:
        path = REPOSITORY / document
        old = path.read_text(encoding="utf-8")
        try:
            new = written(old, TABLES)
        except (OSError, ValueError) as error:
            sys.exit(f"error: {document}: {error}")
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"{document}: figures written")


if __name__ == "__main__":
    main()
