"""A report's page: one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import tnc
from tnc.errors import ArtifactError
from tnc.files import write_text, writing
from tnc.report.page_data import as_script, page_data
from tnc.report.subject import read_reported

FOLDER = files("tnc.report") / "page"
NAME = "report.html"
PARTS = {
    "report": ("report.html", ("basics.js", "charts.js", "sections.js")),
    "search-report": ("search.html", ("basics.js", "charts.js", "search.js")),
}
"""Template and scripts of a page, by the kind of its data."""


def write_report(folder: Path) -> None:
    """Write the page of an artifact into its folder. Raises ArtifactError."""
    with writing(folder / NAME, ArtifactError):
        write_text(folder / NAME, render(page_data([read_reported(folder)])))


def render(data: Mapping[str, Any]) -> str:
    """Return the page for what `page_data` or `search_data` returns; every text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["thousands"] = "{:,.0f}".format
    template, scripts = PARTS[data["kind"]]
    style, script = _read("report.css"), "".join(_read(name) for name in scripts)
    return environment.from_string(_read(template)).render(
        data=data,
        json=as_script(data),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=tnc.__version__,
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
