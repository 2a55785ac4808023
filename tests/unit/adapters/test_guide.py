"""The guide to adapters: its table is whole and true, and its examples run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tnc.adapters.method import methods
from tnc.adapters.start import NEEDS

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "adapters.md"
COLUMNS = ("method", "formula", "trains", "start", "needs", "export", "source")


def rows() -> dict[str, dict[str, str]]:
    """Return the rows of the table of methods by name."""
    section = GUIDE.read_text().split("\n## Every method\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(COLUMNS, row, strict=True)) for row in cells}


def wrong(name: str, row: dict[str, str]) -> str:
    """Say what a row tells wrongly of a method; empty when all is right."""
    kind = methods.get(name)
    told = {need for need in NEEDS if need in row["needs"].split(", ")}
    if told != set(kind.needs):
        return f"needs {told}, the method {kind.needs}"
    if ("not the base" in row["start"]) != bool(kind.offset):
        return "whether it starts as the base"
    empty = [column for column in COLUMNS if column != "needs" and not row[column]]
    return f"{empty[0]} is empty" if empty else ""


@pytest.mark.parametrize("name", sorted(methods.all()))
def test_every_method_has_its_row(name: str) -> None:
    if not methods.get(name).__module__.startswith("tnc."):
        pytest.skip("a plug-in's")
    assert name in rows(), f"{GUIDE.name} has no row for {name}"
    assert not wrong(name, rows()[name])


def test_no_row_is_of_a_method_that_is_gone() -> None:
    assert set(rows()) <= set(methods.all())


def test_a_wrong_row_is_found() -> None:
    row = rows()["lora"]
    assert wrong("lora-ga", row) and wrong("lora-sb", rows()["lora-ga"])
    assert wrong("lora", row | {"formula": ""})


def test_its_examples_run(tmp_path: Path, monkeypatch, capsys) -> None:
    text = GUIDE.read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    blocks = [block for kind, block in fences if kind == "python"]
    printed = [block for kind, block in fences if not kind]
    monkeypatch.chdir(tmp_path)
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)  # where dataclasses look their types up
    known = dict(methods._things)
    try:
        exec(compile("\n".join(blocks), str(GUIDE), "exec"), module.__dict__)
    finally:
        methods._things.clear()
        methods._things.update(known)
    assert capsys.readouterr().out == "".join(printed)
