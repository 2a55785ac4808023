"""The page in a real browser: clicked, sorted, hovered, read by keys; it asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.visits import Visit, launched, needed
from tests.unit.report.plans import hostile, large
from tests.unit.test_cli import report_of
from tnc.report.page import render
from tnc.report.page_data import page_data
from tnc.report.subject import Reported

pytestmark = needed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.fixture
def visit(browser, tmp_path: Path) -> Iterator[Any]:
    pages = []

    def open_page(*reported: Reported, width: int = 1440) -> Visit:
        file = tmp_path / "page.html"
        file.write_text(render(page_data(reported)), encoding="utf-8")
        found = Visit(browser.new_page(viewport={"width": width, "height": 900}))
        pages.append(found)
        found.page.goto(file.as_uri())
        return found

    yield open_page
    for found in pages:
        wrong = found.wrong
        found.page.close()
        assert not wrong


def run_of(layers: int = 24, name: str = "a") -> Reported:
    metrics = report_of().as_json()
    return Reported(name, name, large(layers), metrics=metrics, spec="version: 1\n", artifact=True)


def test_measures_are_switched(visit) -> None:
    found = visit(run_of())
    assert "1.05 M → " in "".join(found.texts(".bars .chart text"))
    found.page.get_by_role("button", name="FLOPs").first.click()
    assert "2.1 M → " in "".join(found.texts(".bars .chart text"))
    assert found.page.locator(".bars [data-name=flops]").get_attribute("aria-pressed") == "true"


def test_columns_are_sorted_and_layers_filtered(visit) -> None:
    found = visit(run_of())
    head = found.page.get_by_role("button", name="Parameters", exact=True).last
    for order in (False, True):
        found.page.locator(".layers th button").nth(2).click()
        shown = [int(t.replace(",", "")) for t in found.texts(".layers tbody td:nth-child(3)")]
        assert len(shown) == 24 and shown == sorted(shown, reverse=not order)
    assert head.count() == 1
    assert found.page.locator(".layers th[aria-sort=ascending]").count() == 1
    found.page.locator(".layers input").fill("up_proj")
    assert len(found.texts(".layers tbody tr")) == 6


def test_points_tell_what_they_are_to_pointer_and_keys(visit) -> None:
    page = visit(run_of()).page
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator(".frontier circle").nth(5).hover()
    assert "predicted error" in tip.inner_text() and "Parameters: " in tip.inner_text()
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    page.locator(".curves svg[role=group]").focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert "relative error" in first and tip.inner_text() != first
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_tooltip_stays_on_a_narrow_page(visit) -> None:
    page = visit(run_of(), width=420).page
    page.locator(".curves circle").last.hover()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 420 and box["width"] > 150


def test_a_module_shows_its_equation_and_drawing(visit) -> None:
    page = visit(run_of(4)).page
    assert page.locator(".diff .equation").count() == 0
    page.locator(".diff summary").last.click()
    assert "B[o r] A[r i] : i -> o" in page.locator(".diff .equation").inner_text()
    assert page.locator(".diff .drawing svg .core").count() == 2


def test_a_layer_is_chosen_for_its_curve(visit) -> None:
    page = visit(run_of()).page
    page.locator(".layers td button").nth(3).click()
    assert page.locator(".curves select").input_value() == large(4).entries[3].site


def test_markup_in_names_does_nothing(visit) -> None:
    found = visit(Reported("<b>", "x", hostile()))
    for summary in found.page.locator(".diff summary").all():
        summary.click()
    found.page.locator(".frontier circle").first.hover()
    assert found.page.locator("img, h1 b").count() == 0
    assert found.page.locator("h1").inner_text() == "<b>"


def test_runs_lie_side_by_side(visit) -> None:
    other = replace(run_of(12, "second"), metrics={})
    page = visit(run_of(), other).page
    assert page.locator(".compare th").all_text_contents()[1:3] == ["a", "second"]
    assert "12 of 24 layers differ" in page.locator("#compared h3").inner_text()
    assert "absent" in page.locator(".differing tbody tr").first.inner_text()
    assert page.locator("#run-1").is_hidden()
    page.get_by_role("tab", name="second").click()
    assert page.locator("#run-1").is_visible() and page.locator("#run-0").is_hidden()
    assert page.locator("#run-1 .bars .chart text").count() > 0


@pytest.mark.parametrize("width", [1440, 420])
def test_thousands_of_layers_stay_responsive(visit, width: int) -> None:
    page = visit(run_of(2000), width=width).page
    assert page.evaluate("document.querySelectorAll('*').length") < 10_000
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "join repeated blocks" in page.locator(".bars .tools").first.inner_text()
    assert page.locator(".layers tbody tr").count() == 60
    page.locator(".layers .pager button").last.click()
    assert "61–120 of 2000" in page.locator(".layers .pager").inner_text()


def test_what_goes_wrong_is_seen(browser) -> None:
    found = Visit(browser.new_page())
    found.page.set_content("<script>throw new Error('x')</script>")
    assert found.wrong
    found.page.close()
