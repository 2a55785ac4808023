"""A real browser for pages: what goes wrong in it is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason='pip install "tnc[browser]"')
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needed = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip


class Visit:
    """An open page with what went wrong on it."""

    def __init__(self, page: Any) -> None:
        self.page, self.wrong = page, []
        page.on("console", lambda told: told.type == "error" and self.wrong.append(told.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append("dialog"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith("file:") or self.wrong.append(r.url))

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()  # type: ignore[no-any-return]


@contextmanager
def launched() -> Iterator[Any]:
    """Yield a headless browser."""
    with sync_api.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield found
        found.close()
