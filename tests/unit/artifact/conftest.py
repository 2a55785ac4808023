"""Artifacts of small models."""

from __future__ import annotations

from pathlib import Path

import pytest

import tnc
from tests.compiled import halved

SOURCE = {"kind": "callable", "function": "tests.unit.artifact.models:prime"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact in many small files, that says how its model is built."""
    return tnc.save(halved("prime"), tmp_path / "artifact", source=SOURCE, shard_bytes=400)
