"""Layers that read one tensor share the factor that meets it."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.errors import PassError
from tnc.rewrite import Approximate, InParts, Pass, Subject, passes
from tnc.rewrite.factorizing import factorize_entry


@passes.register("share-input-factors")
@dataclass(frozen=True)
class ShareInputFactors(Pass):
    """Fit `[Wq; Wk; Wv] = [Bq; Bk; Bv] A` for the groups of a plan, and store A once.

    The core that carries the output leg is cut into the rows of each layer; all other cores are one
    parameter that the layers share.
    """

    contract = Approximate()
    in_parts = InParts(carried=True)

    def apply(self, subject: Subject) -> Subject:
        if subject.plan is None:
            raise PassError("share-input-factors needs a plan")
        for entry in subject.plan.entries:
            if entry.structure is not None and len(entry.members) > 1:
                subject = factorize_entry(subject, entry)
        return subject
