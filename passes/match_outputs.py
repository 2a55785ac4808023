"""Correct the outputs of compressed layers, channel by channel, layer after layer."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.capture.batches import some_of
from tnc.rewrite import Approximate, InParts, Pass, Subject, passes
from tnc.rewrite.matching import matched


@passes.register("match-outputs")
@dataclass(frozen=True)
class MatchOutputs(Pass):
    """`y' -> s (y' - E y') + E y` with `s = cov(y, y') / var(y')`, for every output channel.

    y is what the original's layer computes from its own inputs, y' what the compressed one does
    from those that it now gets. Layers are taken in the order of execution, structured or not, from
    the first structured convolution on; models without one are left. The scale goes into the core
    that carries the outputs, the shift into the bias; layers without a bias, or whose outputs are
    split over several cores, keep what they cannot take up. For folded batch norms this is what
    recomputing their statistics would be. A layer is left as it was where the correction from half
    of the data does not help on the other half. About `samples` calibration samples are used.
    """

    samples: int = 512
    contract = Approximate()
    in_parts = InParts(looks_for=("conv",), measures=True)

    def apply(self, subject: Subject) -> Subject:
        if not subject.batches:
            return subject.edited("nothing matched: it needs calibration data")
        if subject.original is None:
            return subject.edited("nothing matched: the original model is not at hand")
        return matched(subject, some_of(subject.batches, self.samples))
