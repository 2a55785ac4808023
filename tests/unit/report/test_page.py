"""The page: self-contained, escaped, small, the same for the same data; kind errors."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import tnc
from tests.compiled import halved
from tests.unit.report.plans import HOSTILE, hostile, large
from tests.unit.test_cli import plan_of, report_of
from tnc.cli import main
from tnc.decide.plan import Plan
from tnc.report.findings import differences, warnings_of
from tnc.report.page import render
from tnc.report.page_data import page_data, pattern
from tnc.report.subject import Reported, read_reported


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, text: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(text)


def page_of(*plans: Plan, **more: Any) -> str:
    """The page of plans."""
    return render(page_data([Reported("a", "a.json", plan, **more) for plan in plans]))


def test_nothing_is_asked_of_a_network_and_only_its_own_script_runs() -> None:
    page = Page(page_of(plan_of()))
    policy = next(a["content"] for tag, a in page.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    told = dict(re.findall(r"(script|style)-src '(sha256-[^']+)'", policy))
    for kind, text in (("script", page.inside["script"][-1]), ("style", page.inside["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert told[kind] == f"sha256-{digest}"
    for _, attributes in page.found:
        assert not {"src", "style", "srcset"} & set(attributes)
        assert attributes.get("href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page.inside["style"][0] and "@import" not in page.inside["style"][0]


def test_markup_in_names_stays_text() -> None:
    text = page_of(hostile(), spec=HOSTILE, source={"kind": HOSTILE})
    page = Page(text)
    assert [tag for tag, _ in page.found].count("script") == 2
    assert "img" not in [tag for tag, _ in page.found]
    data = json.loads(page.inside["script"][0])
    assert data["runs"][0]["layers"][-1]["site"] == f"{HOSTILE}.weight"
    assert HOSTILE not in text


def test_the_check_of_markup_can_fail() -> None:
    assert "img" in [tag for tag, _ in Page(HOSTILE).found]


def test_the_same_plan_gives_the_same_page() -> None:
    assert page_of(plan_of()) == page_of(plan_of())
    assert page_of(plan_of()) != page_of(plan_of(rank=3))


def test_a_page_is_small() -> None:
    assert len(page_of(plan_of())) < 100_000
    assert len(page_of(large(72, 1))) < 300_000
    assert len(page_of(large())) < 4_000_000


def test_numbers_that_json_cannot_hold_are_left_out() -> None:
    plan = plan_of()
    broken = replace(plan, entries=(replace(plan.entries[0], error=float("nan")),))
    data = page_data([Reported("a", "a", broken)])
    assert data["runs"][0]["layers"][0]["error"] is None
    json.dumps(data, allow_nan=False)


def test_layers_come_in_the_order_of_execution() -> None:
    plan = large(48)
    shuffled = replace(plan, entries=tuple(sorted(plan.entries, key=lambda entry: entry.site)))
    bare = replace(shuffled, background=type(plan.background)())
    for one, wanted in (
        (shuffled, plan.entries[44].site),
        (bare, "model.layers.11.down_proj.weight"),
    ):
        layers = page_data([Reported("a", "a", one)])["runs"][0]["layers"]
        assert layers[44]["site"] == wanted
    strip = page_data([Reported("a", "a", shuffled)])["runs"][0]["strip"]
    assert [row[2] for row in strip] == list(range(48))
    assert sum(row[4] for row in strip) == plan.total.params


def test_patterns_join_repeated_blocks_only() -> None:
    assert pattern("h.0.c1.weight") == pattern("h.17.c1.weight") == "h.*.c1.weight"
    assert pattern("h.0.c1.weight") != pattern("h.0.c2.weight")


def test_warnings_say_what_went_wrong() -> None:
    timing = {"batch": 1, "before": 1.0, "after": 2.0, "unreliable": "3 threads shared 1 core"}
    slow = {"timings": [timing], "gate": "too far"}
    over = replace(plan_of(), budgets=(("params", 10.0),))
    told = "\n".join(warnings_of(Reported("a", "a", over, metrics=slow, artifact=True)))
    for wanted in ("above the 10 allowed", "2.00 times slower", "too far", "no held-out data",
                   "Times at batch 1 are unreliable: 3 threads"):  # fmt: skip
        assert wanted in told
    fine = report_of().as_json()
    good = replace(plan_of(), budgets=(("params", 1e6),), background=large(4).background)
    assert not list(warnings_of(Reported("a", "a", good, metrics=fine, artifact=True)))


def test_runs_that_do_not_compare_are_told() -> None:
    one = Reported("a", "a", plan_of(), metrics={"environment": {"threads": "1"}})
    two = replace(one, metrics={"environment": {"threads": "8"}})
    other = replace(two, plan=replace(plan_of(), fingerprint="g"))
    assert not list(differences([one, one]))
    assert "another threads" in "".join(differences([one, two]))
    assert "different models" in "".join(differences([one, other]))


def test_an_artifact_and_a_plan_are_reported(tmp_path: Path, capsys) -> None:
    made = halved("prime")
    tnc.save(made, tmp_path / "art", report=report_of().as_json(), spec="version: 1\n")
    made.plan.save(tmp_path / "plan.json")
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "art"), "--out", str(out)]) == 0
    assert "report written to" in capsys.readouterr().err
    text = out.read_text()
    assert "spec.yaml --plan" in text and "version: 1" in text
    both = [str(tmp_path / "art"), "--plan", str(tmp_path / "plan.json")]
    assert main(["report", *both, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["version"], len(found["runs"])) == ("report", 1, 2)
    assert found["runs"][0]["figures"][0] == ["cosine distance", 0.01]
    assert found["runs"][0]["digest"] == found["runs"][1]["digest"] == made.plan.digest
    assert read_reported(tmp_path / "art").plan.background == made.plan.background


def test_numbers_of_a_report_of_ones_own_are_figures(tmp_path: Path) -> None:
    tnc.save(halved("prime"), tmp_path / "art", report={"accuracy": 0.9, "note": "x"})
    (run,) = page_data([read_reported(tmp_path / "art")])["runs"]
    assert run["figures"] == [["accuracy", 0.9]] and run["command"].startswith("tnc.compile(")


def old_format(folder: Path) -> None:
    tnc.save(halved("prime"), folder)
    file = folder / "tnc.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda place: None, "is not there"),
        (lambda place: place.mkdir(), "is no artifact"),
        (lambda place: place.write_text("{"), "cannot read the plan"),
        (lambda place: place.write_bytes(b"\xff\xfe"), "cannot read the plan"),
        (lambda place: place.write_text('{"version": 7}'), "plan version 7 is not 1"),
        (old_format, "has format 0"),
    ],
)
def test_what_cannot_be_reported_on_is_one_kind_error(prepare, told, tmp_path, capsys) -> None:
    prepare(tmp_path / "x")
    assert main(["report", str(tmp_path / "x"), "--out", str(tmp_path / "page.html")]) == 2
    printed = capsys.readouterr().err
    assert told in printed and printed.startswith("error: ") and "internal" not in printed
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, capsys) -> None:
    plan_of().save(tmp_path / "plan.json")
    assert main(["report", str(tmp_path / "plan.json"), "--out", str(tmp_path)]) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "nothing to report on" in capsys.readouterr().err
