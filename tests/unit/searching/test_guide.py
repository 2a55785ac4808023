"""The guide to searches names every key, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tnc.decide.spectree import parse_tree
from tnc.searching import spec

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "searching.md"
PARTS = {"search": spec.Search, "space": spec.SpacePart, "limits": spec.LimitsPart}


@pytest.mark.parametrize("name", PARTS)
def test_every_key_is_in_the_guide(name: str) -> None:
    section = GUIDE.read_text().split(f"\n## Keys of `{name}`\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.M)) == set(PARTS[name].model_fields)


def test_the_example_is_a_search() -> None:
    example = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    assert spec.checked(parse_tree(example, "guide")).search.limits.patience == 60
