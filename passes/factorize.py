"""Carry a plan out: every planned weight becomes its structure."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.capture.batches import some_of
from tnc.errors import PassError
from tnc.rewrite import Approximate, InParts, Pass, Subject, passes
from tnc.rewrite.factorizing import factorize_entry
from tnc.rewrite.sequential import refitted_weights


@passes.register("factorize")
@dataclass(frozen=True)
class Factorize(Pass):
    """Fit and install the planned structure of every single site, in the order of execution.

    With calibration data, and `refit` above zero, each linear layer is fitted to what the original
    computes from its own inputs, given the inputs that the compressed layers before it now produce:
    `W* = W (E[x x'^T] + refit C) (E[x' x'^T] + refit C)^-1`. The weight of the original moment
    `refit C` keeps it from overfitting. About `samples` calibration samples are used for it.
    """

    refit: float = 0.3
    samples: int = 512
    contract = Approximate()
    in_parts = InParts(carried=True, follows=True)

    def apply(self, subject: Subject) -> Subject:
        if subject.plan is None:
            raise PassError("factorize needs a plan")
        singles = [e for e in subject.plan.entries if e.structure and len(e.members) == 1]
        measured = [e for e in singles if e.metric != "none"]
        if self.refit > 0 and subject.batches and measured:
            for entry in (e for e in singles if e.metric == "none"):
                subject = factorize_entry(subject, entry)
            batches = some_of(subject.batches, self.samples)
            return refitted_weights(subject, measured, self.refit, batches)
        for entry in singles:
            subject = factorize_entry(subject, entry)
        return subject
