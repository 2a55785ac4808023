"""The guide to optimizers: its tables are whole, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tnc.optim import FORMS, Kind
from tnc.optim.rule import STEP, rules

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "optimizers.md"
COLUMNS = {
    Kind.COVECTOR: "exact",
    Kind.SCALAR: "exact",
    Kind.GRAM: "exact",
    Kind.DIAGONAL: "calibrated",
    Kind.MAGNITUDE: "calibrated",
}


def table(first: str, text: str) -> dict[str, dict[str, str]]:
    """Return the rows of the table whose first column is so called, by each name in it."""
    lines = iter(text.splitlines())
    heads = next(cells for line in lines if (cells := _cells(line)) and cells[0] == first)
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        cells = _cells(line)
        for name in re.findall(r"`([^`]+)`", cells[0]):
            found[name] = dict(zip(heads, cells, strict=True))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def missing(row: dict[str, str], kinds: dict[str, Kind]) -> set[str]:
    """Return the slots that a row does not name in the column of their kind."""
    found = set()
    for slot, kind in kinds.items():
        stem = re.sub(r"_\d+$", "", slot)
        places = {COLUMNS.get(kind, "anew")} | ({"anew"} if kind is Kind.GRAM else set())
        told = " ".join(row[place] for place in places)
        if slot != STEP and not {f"`{slot}`", f"`{stem}`", f"`{stem}_k`"} & set(
            re.findall(r"`[^`]+`", told)
        ):
            found.add(slot)
    return found


@pytest.mark.parametrize("name", sorted(table("rule", GUIDE.read_text())))
def test_every_row_of_the_table_is_of_a_rule_and_has_its_slots(name) -> None:
    row = table("rule", GUIDE.read_text())[name]
    assert not missing(row, dict(rules.get(name).kinds))
    assert row["numbers"] and row["source"]


@pytest.mark.parametrize("kind", sorted(FORMS, key=lambda kind: kind.__name__))
def test_every_optimizer_of_torch_is_in_the_table_with_its_slots(kind) -> None:
    if not kind.__module__.startswith("torch."):
        pytest.skip("made known by a test")
    rows = table("optimizer", GUIDE.read_text())
    assert kind.__name__ in rows, f"{GUIDE.name} has no row for {kind.__name__}"
    assert not missing(rows[kind.__name__], dict(FORMS[kind].kinds))


def test_a_slot_that_is_missing_is_found() -> None:
    row = table("rule", GUIDE.read_text())["lion"]
    assert missing(row, {"exp_avg": Kind.COVECTOR, "other": Kind.COVECTOR}) == {"other"}
    assert missing(row, {"exp_avg": Kind.DIAGONAL}) == {"exp_avg"}


def test_its_examples_run(tmp_path, monkeypatch, capsys) -> None:
    text = GUIDE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    known = dict(rules._things)
    try:
        exec(compile("\n".join(blocks), str(GUIDE), "exec"), {"__name__": "guide"})
    finally:
        rules._things.clear()
        rules._things.update(known)
    printed = re.search(r"^```\n(AdamW, .*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    said = capsys.readouterr().out.splitlines()
    assert printed is not None
    assert [_words(line) for line in printed[1].splitlines()] == [_words(x) for x in said[:3]]


def _words(line: str) -> str:
    return re.sub(r"ratio [\d.]+", "ratio", line)
