"""Find the sites again after the model was simplified."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.capture import capture
from tnc.rewrite import Analysis, InParts, Pass, Subject, passes


@passes.register("find-sites")
@dataclass(frozen=True)
class FindSites(Pass):
    """Trace the model and list its sites; everything that is no site is named with its reason."""

    contract = Analysis()
    stage = "prepare"
    in_parts = InParts(carried=True)

    def apply(self, subject: Subject) -> Subject:
        trace = capture(subject.model, *subject.probe, graph=False)
        return subject.edited(
            f"{len(trace.sites)} sites, {len(trace.untraced)} left alone", trace=trace
        )
