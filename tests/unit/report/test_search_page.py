"""The page of a search: honest counts, one file, escaped, by either command; kind errors."""

from __future__ import annotations

import gc
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import tnc
from tests.unit.report.searches import made
from tests.unit.report.test_page import Page
from tests.unit.test_cli import plan_of
from tnc.cli import main
from tnc.report.page import render
from tnc.report.search_data import COLUMNS, DRAWN, search_data
from tnc.searching.folder import RunFolder
from tnc.searching.running import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("search") / "run")


@pytest.fixture(scope="module")
def data(run: Path) -> dict[str, Any]:
    return search_data(run)


def test_counts_are_those_of_the_run(run: Path, data: dict[str, Any]) -> None:
    found = load(RunFolder.open(run)).found
    told = {name: count for name, count, _ in data["counts"]}
    assert told == vars(found.counts) and told["hits"] > 0
    assert told == RunFolder.open(run).events()[-1]["counts"]
    assert told["evaluations"] == len(data["trials"]) == 40
    assert told["failed"] == sum(count for _, count in data["failures"]) > 0
    assert told["failed"] == sum(each[1] is None for each in data["trials"])
    assert any("evaluations failed" in warning for warning in data["warnings"])
    assert data["processes"] == 1 and (data["state"], data["ended"]) == ("ended", "40 evaluations")


def test_the_curve_falls_to_the_best(data: dict[str, Any]) -> None:
    scores = {number: score for number, score, *_ in data["trials"] if score is not None}
    best, curve = float("inf"), []
    for number in range(1, 41):
        if scores.get(number, best) < best:
            best = scores[number]
            curve.append([number, best])
    assert data["curve"] == [*curve, [40, best]]
    assert data["networks"][0]["score"] == best == data["heat"]["scores"][0]


def test_no_evaluation_beats_the_front(data: dict[str, Any]) -> None:
    points = {number: (ratio, rse) for number, _, rse, ratio, *_ in data["trials"] if rse}
    assert data["front"]
    for number in data["front"]:
        ratio, rse = points[number]
        assert not [p for p in points.values() if p[0] <= ratio and p[1] < rse]


def test_the_heat_map_holds_the_bonds_of_the_best(data: dict[str, Any]) -> None:
    heat = data["heat"]
    assert len(heat["sizes"]) == len(heat["numbers"]) <= COLUMNS
    assert len(data["networks"]) == DRAWN
    for network, sizes in zip(data["networks"], heat["sizes"]):
        bonds = {
            f"G{int(a) + 1}–G{int(b) + 1}": int(size)
            for bond in network["topology"].split()[1:]
            for (pair, size) in [bond.split(":")]
            for (a, b) in [pair.split("-")]
        }
        assert {b: s for b, s in zip(heat["bonds"], sizes) if s > 1} == bonds
        assert network["drawing"].startswith("<svg")


def test_the_page_is_one_file_that_is_escaped(tmp_path: Path) -> None:
    run = made(tmp_path / "<img src=x onerror=alert(1)>", limits={"evaluations": 6})
    page = Page(render(search_data(run)))
    assert [tag for tag, _ in page.found].count("script") == 2
    assert "img" not in [tag for tag, _ in page.found]
    for _, attributes in page.found:
        assert not {"src", "style"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
    assert json.loads(page.inside["script"][0])["name"] == run.name


def test_both_commands_write_it(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["search", "report", str(run), "--out", "one.html"]) == 0
    assert main(["report", str(run), "--out", "two.html"]) == 0
    assert Path("one.html").read_text() == Path("two.html").read_text()
    capsys.readouterr()
    assert main(["search", "report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "search-report"


def test_its_command_makes_the_same_search(run: Path, data: dict[str, Any], tmp_path: Path) -> None:
    words = data["command"].replace("--out DIR", f"--out {tmp_path / 'again'}").split()
    assert words[0] == "tnc" and main(words[1:]) == 0
    gc.collect()
    again = search_data(tmp_path / "again")
    assert [each[:6] for each in again["trials"]] == [each[:6] for each in data["trials"]]
    assert again["curve"] == data["curve"]


def test_a_run_that_was_interrupted_says_so(run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(run, tmp_path / "broken")
    lines = (broken / "events.jsonl").read_text().splitlines(keepends=True)
    (broken / "events.jsonl").write_text("".join(lines[:-1]))
    found = search_data(broken)
    assert found["state"] == "interrupted" and not found["ended"]
    assert any("it can go on" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("bonds", "strategy"), [("star", "greedy"), ("tree", "random"), ("full", "tnls")]
)
def test_other_spaces_and_negative_scores_have_a_page(
    bonds: str, strategy: str, tmp_path: Path
) -> None:
    run = made(
        tmp_path / "run",
        space={"bonds": bonds, "rank": 3},
        strategy=strategy,
        objective="log-size-and-error",
        evaluator="toy",
        limits={"evaluations": 12},
    )
    found = search_data(run)
    assert found["networks"][0]["score"] < 0 and 5 < len(found["trials"]) <= 12
    looks = sum(effort < 1 for *_, effort, _, _ in found["trials"])
    assert any(f"{looks} evaluations were quick" in told for told in found["warnings"]) == bool(
        looks
    )
    assert render(found)


def test_what_has_no_page_is_told(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    plan_of().save(tmp_path / "plan.json")
    for words, told in (
        (["search", "report", str(tmp_path / "empty")], "is no folder of a search"),
        (["report", str(run), str(tmp_path / "plan.json")], "has a page of its own"),
    ):
        assert main(words) == 2 and told in capsys.readouterr().err
    bad = made(tmp_path / "bad", evaluator={"toy": {"divide": "x"}}, limits={"evaluations": 5})
    assert main(["search", "report", str(bad)]) == 2
    assert "nothing to report yet: 5 evaluations" in capsys.readouterr().err


def test_the_commands_of_the_guide_work(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/ring").symlink_to(run)
    plan_of().save(Path("plan.json"))
    guide = (Path(tnc.__file__).parents[1] / "docs" / "guides" / "report.md").read_text()
    blocks = guide.split("## The page of a search")[1].split("```bash\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    assert len(lines) == 7
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
