"""The page of a search in a real browser, wide and narrow: hovered, clicked, read by keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.visits import Visit, launched, needed
from tests.unit.report.searches import made
from tnc.report.page import render
from tnc.report.search_data import search_data

pytestmark = [needed, pytest.mark.parametrize("width", [1440, 420])]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    file = folder / "page.html"
    file.write_text(render(search_data(made(folder / "<b>"))), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Any, page_file: Path, width: int) -> Iterator[Any]:
    visit = Visit(browser.new_page(viewport={"width": width, "height": 900}))
    visit.page.goto(page_file.as_uri())
    yield visit.page
    visit.page.close()
    assert not visit.wrong


def test_points_tell_their_candidate(page: Any, width: int) -> None:
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator(".sofar circle.f-0").nth(1).hover()
    assert "after " in tip.inner_text() or "evaluation " in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.mouse.move(0, 0)
    page.locator(".front svg[role=group]").focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("End")
    assert "parameters" in first and "3x3x3x3" in first and tip.inner_text() != first
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_point_of_the_front_leads_to_its_drawing(page: Any, width: int) -> None:
    assert page.locator(".drawings figure.on").count() == 0
    page.locator(".front circle.k-1").click()
    chosen = page.locator(".drawings figure.on")
    assert chosen.count() == 1 and chosen.locator("b").inner_text().startswith("1. ")


def test_the_scale_is_switched(page: Any, width: int) -> None:
    before = page.locator(".sofar path.line").get_attribute("d")
    other = page.locator(".sofar button[aria-pressed=false]")
    other.click()
    assert page.locator(".sofar path.line").get_attribute("d") != before
    assert page.locator(".sofar button[aria-pressed=true]").count() == 1


def test_ranks_and_drawings_are_there(page: Any, width: int) -> None:
    assert page.locator(".drawings figure svg").count() == 6
    assert page.locator(".drawings figure").first.locator(".core").count() == 4
    page.locator(".heat rect").first.hover()
    assert "network 1" in page.locator("#tip").inner_text()
    page.locator(".heat rect").first.click()
    assert page.locator(".drawings figure.on").count() == 1
    page.locator(".drawings summary").first.click()
    assert "m1" in page.locator(".drawings .equation").first.inner_text()
    assert page.locator("h1 b").count() == 0 and page.locator("h1").inner_text() == "<b>"


def test_nothing_is_wider_than_the_page(page: Any, width: int) -> None:
    page.locator(".again summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.locator(".drawings svg").evaluate_all(
        "all => all.map((each) => each.getBoundingClientRect().right)"
    )
    assert max(boxes) <= width
