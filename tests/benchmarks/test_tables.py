"""The figures of the documents: written from the committed records, nowhere typed by hand."""

from __future__ import annotations

import re
from pathlib import Path

import accuracy_rows as rows
import pytest
import speed_tables
import tables
import torch
from accuracy_tables import Line, comparison_table, dice, fold_table
from table_registry import TABLES

ROOT = Path(__file__).parents[2]
TEXTS = {document: (ROOT / document).read_text(encoding="utf-8") for document in tables.DOCUMENTS}
# As figures are written: mean ± spread, Dice, counts of parameters, times, ratios.
FIGURE = re.compile(r"± \d|\b0\.[89]\d{2,}|\b\d+,\d{3},\d{3}\b|\d ms\b|\d times as|\d % of (?:its|the) param")


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_documents_hold_what_the_records_say(document: str) -> None:
    assert tables.written(TEXTS[document], TABLES) == TEXTS[document], "run `make tables` and look at the difference"


def test_every_table_stands_in_a_document() -> None:
    assert {name for text in TEXTS.values() for name in tables.names(text)} == set(TABLES)


def test_every_record_is_printed_by_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy's are, all of them, by "all trainings"."""
    read: set[str] = set()
    found = speed_tables.record
    monkeypatch.setattr(speed_tables, "record", lambda name: read.add(name) or found(name))
    for table in TABLES.values():
        table()
    assert read == {path.stem for path in speed_tables.RESULTS.glob("*.json")}


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_no_figure_is_typed_by_hand(document: str) -> None:
    by_hand = re.sub(r"^```.*?^```", "", tables.BLOCK.sub("", TEXTS[document]), flags=re.MULTILINE | re.DOTALL)
    found = [line for line in by_hand.splitlines() if FIGURE.search(line) and "published" not in line.lower()]
    assert not found, "a figure without a record: let a table of benchmarks/table_registry.py print it, or drop it"


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*tables.DOCUMENTS, "CONTRIBUTING.md", "benchmarks/NOTES.md"])
def test_links_lead_somewhere(document: str) -> None:
    source = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", source.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            name, _, anchor = target.partition("#")
            path = source.parent / name if name else source
            assert path.exists(), f"{document}: {target}"
            assert not anchor or anchor in anchors(path), f"{document}: {target}"


def test_a_table_that_was_typed_by_hand_is_written_over() -> None:
    text = f"before\n<!-- figures: a -->\n| typed |\n{tables.END}\n\n<!-- figures: b -->\n{tables.END}\nafter\n"
    new = tables.written(text, {"a": lambda: "| counted |", "b": lambda: "one\n\ntwo"})
    assert new.splitlines()[:4] == ["before", "<!-- figures: a -->", "| counted |", tables.END]
    assert new.splitlines()[4:] == ["", "<!-- figures: b -->", "one", "", "two", tables.END, "after"]
    assert tables.written(new, {"a": lambda: "| counted |", "b": lambda: "one\n\ntwo"}) == new


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"<!-- figures: nothing -->\n{tables.END}\n", "no table is called nothing: .* holds a"),
        ("<!-- figures: a -->\n", "without the other one"),
        (f"{tables.END}\n", "without the other one"),
        (f"<!-- figures: a -->\n<!-- figures: a -->\n{tables.END}\n", "without the other one"),
        (f"in a line <!-- figures: a -->\n{tables.END}\n", "without the other one"),
    ],
)
def test_markers_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.written(text, {"a": lambda: ""})


def test_the_readme_keeps_one_table_of_figures() -> None:
    assert tables.names(TEXTS["README.md"]) == ["headline"]
    assert len(TABLES["headline"]().splitlines()) - 2 <= 8


@pytest.mark.parametrize("path", rows.SHIPPED)
def test_shipped_weights_are_those_of_their_record(path: str) -> None:
    """Against the weights themselves and what the training's log ends with."""
    line = rows.SHIPPED[path]
    weights = torch.load(ROOT / "bundle" / path, map_location="cpu", weights_only=True)
    assert sum(tensor.numel() for tensor in weights.values()) == line.runs()[0]["parameters"]
    row = next(row for row in TABLES["shipped weights"]().splitlines() if f"`{path}`" in row)
    log = (ROOT / "bundle" / re.findall(r"docs/\w+\.log", row)[0]).read_text(encoding="utf-8")
    table = log[log.rindex("cases, mean ± SD") :]
    assert " / ".join(re.findall(r"^\w+ +(0\.\d{4}) ±", table, flags=re.MULTILINE)) == dice(line)


def test_all_shipped_weights_are_in_the_table() -> None:
    shipped = {path.relative_to(ROOT / "bundle").as_posix() for path in (ROOT / "bundle/models").rglob("*.pt")}
    assert shipped == set(rows.SHIPPED)


def test_a_row_without_its_record_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no record of .*'nobody'.*, fold 0, 3, in"):
        Line("a name", "nobody", folds=("0", "3")).runs()


def record(network: str, fold: str, parameters: int, scores: dict[str, float]) -> dict:
    cases = {case: {"a": {"dice": value, "hd95": 1.0}} for case, value in scores.items()}
    common = {"task": "t", "variant": "", "budget": "9it", "seed": 0, "iterations": 9}
    return common | {
        "network": network,
        "fold": fold,
        "parameters": parameters,
        "scores": {"tta": cases, "no_tta": cases},
    }


def test_differences_are_first_minus_second_on_shared_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        record("n", "0", 90, {"x": 0.8, "y": 0.7}),
        record("n", "1", 90, {"z": 0.5}),
        record("m", "0", 200, {"x": 0.7, "y": 0.8}),
        record("m", "1", 200, {"z": 0.1}),
    ]
    monkeypatch.setattr("accuracy_tables.records", lambda: made)
    first, second = (Line(name.upper(), name, budget="9it", folds=("0", "1"), task="t") for name in "nm")
    only = first.named("N", folds=("0",))
    assert comparison_table([(first, second), (only, second)]).splitlines()[2:] == [
        "| N | M | 0, 1 | 3 | 45 % | +0.1333 ± 0.1453 |",
        "| N | M | 0 | 2 | 45 % | +0.0000 ± 0.1000 |",
    ]
    assert fold_table({"short": (first, second)}).splitlines() == [
        "| fold | cases | a, short |",
        "| --- | ---: | ---: |",
        "| 0 | 2 | +0.0000 ± 0.1000 |",
        "| 1 | 1 | +0.4000 |",
        "| 0, 1 | 3 | +0.1333 ± 0.1453 |",
    ]
    assert dice(first) == "0.6667"
