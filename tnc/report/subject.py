"""What a report is about: an artifact's folder, or a plan's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnc.decide.plan import Plan
from tnc.errors import ArtifactError


@dataclass(frozen=True)
class Reported:
    """A plan with what is known about its run; `metrics` is empty for a plan alone.

    `metrics` is `RunReport.as_json()`, `spec` the resolved spec as YAML.
    """

    name: str
    place: str
    plan: Plan
    metrics: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    artifact: bool = False


def read_reported(place: str | Path) -> Reported:
    """Read an artifact's folder or a plan's file. Raises ArtifactError, PlanError."""
    path = Path(place)
    if path.is_file():
        return Reported(path.name, str(place), Plan.read(path))
    if not path.is_dir():
        raise ArtifactError(
            f"{place} is not there",
            hint="name an artifact's folder (`tnc compile SPEC --out DIR` makes one), or a plan",
        )
    from tnc.artifact.manifest import Manifest

    manifest = Manifest.read(path)
    return Reported(
        name=path.resolve().name,
        place=str(place),
        plan=Plan.from_json(manifest.plan),
        metrics=_run_metrics(manifest.metrics),
        spec=manifest.spec,
        versions=manifest.versions,
        source=manifest.source,
        artifact=True,
    )


def _run_metrics(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a run measured; of any other report its numbers, as figures."""
    if metrics.get("kind") == "run":
        return metrics
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    return {"figures": numbers} if numbers else {}
