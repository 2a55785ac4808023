"""The guide to searches names every key and strategy, and its commands work as written."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import tnc
from tnc.cli import main
from tnc.decide.spectree import parse_tree
from tnc.explore import evaluators, objectives, strategies
from tnc.explore.run import Counts
from tnc.searching import spec
from tnc.searching.targets.ring import Ring

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "search.md"
PARTS = {"search": spec.Search, "space": spec.SpacePart, "limits": spec.LimitsPart}


@pytest.mark.parametrize("name", PARTS)
def test_every_key_is_in_the_guide(name: str) -> None:
    section = GUIDE.read_text().split(f"\n## Keys of `{name}`\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.M)) == set(PARTS[name].model_fields)


def test_the_example_is_a_search() -> None:
    example = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    assert spec.checked(parse_tree(example, "guide")).search.limits.patience == 60


@pytest.mark.parametrize(
    ("heading", "things"),
    [("Strategies", strategies), ("Objectives", objectives), ("Evaluators", evaluators)],
)
def test_everything_registered_is_in_its_table(heading: str, things) -> None:
    section = GUIDE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    here = {name for name, each in things.all().items() if each.__module__.startswith("tnc.")}
    assert set(re.findall(r"^\| `([\w-]+)", section, re.M)) == here


def test_every_count_is_told() -> None:
    section = GUIDE.read_text().split("\n## What is counted\n")[1].split("\n## ")[0]
    told = set(re.findall(r"^\| (\w+) \|", section, re.M)) - {"count"}
    assert told == set(vars(Counts())) - {"rounds"}


@pytest.mark.slow
def test_the_commands_work_as_written(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text()
    ring = Ring((3, 3, 3, 3), (2, 2, 2, 2))
    np.savez("tensor.npz", x=ring.load())
    Path("spec.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines()
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "tnc" and main(words[1:]) == 0, line
    assert Path("runs/ring/report.html").is_file()
    picture = (GUIDE.parent.parent / "images" / "search-ring.svg").read_text()
    best = str(Ring((3,) * 6, (2, 2, 2, 3, 3, 4)).topology.network()).replace(">", "&gt;")
    for drawn in (picture, Path("ring.svg").read_text()):
        assert drawn.split("<title>")[1].startswith(best)


def test_the_strategy_of_the_guide_searches(tmp_path: Path, monkeypatch) -> None:
    code = GUIDE.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "strategy_of_the_guide.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        importlib.import_module("strategy_of_the_guide")
        found = tnc.search(
            {"ring": [3, 3, 3, 3], "ranks": [2, 2, 2, 2]},
            space={"rank": 3},
            strategy={"downhill": {"radius": 1}},
            engine="serial",
            limits={"evaluations": 80, "target": 0.6},
        )
        assert found.best is not None and found.best.score <= 0.6
    finally:
        strategies._things.pop("downhill", None)
