"""The guide to the spec names every key, under the heading of its part, and none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tnc.decide import spec
from tnc.decide.adapters import AdapterRule, AdapterSpec

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "spec.md"
HEADINGS = {
    "The top level": spec.Spec,
    "`budget`": spec.Budget,
    "A rule": spec.Rule,
    "`adapters`": AdapterSpec,
    "A rule of an adapter": AdapterRule,
    "`quality`": spec.Quality,
    "`distill`": spec.Distill,
}


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_key_is_in_the_guide(heading: str) -> None:
    section = GUIDE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.M) == list(HEADINGS[heading].model_fields)
