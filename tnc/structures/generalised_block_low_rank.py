"""Generalised block low rank: rank-one blocks of learned places and sizes (Gaudi-GBLR)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, kernel_legs, one_map
from tnc.structures.template import Template

_SHARES = (2, 4, 8)


@families.register("generalised-block-low-rank")
@dataclass(frozen=True)
class GeneralisedBlockLowRank(Family):
    """`W = sum_r (m_r * b_r)(m'_r * a_r)^T`, each factor on one interval (Lee and Kim, 2024).

    Low rank with sparse cores: `n` entries of B and `m` of A are stored. Blocks may overlap, and
    cover block-diagonal, block low-rank and low-rank weights. `components` is their number r; with
    'auto' a plan compares several. Exact where the supports are full and r is the smaller side.
    """

    components: Count = "auto"
    fit = "gaudi"

    def refuses(self, signature: Signature) -> str:
        reason = one_map(signature)
        most = min(prod(signature.outputs), prod(signature.inputs))
        if isinstance(self.components, int) and not 1 <= self.components <= most:
            return reason or f"components is {self.components}, it must be 1 to {most}"
        return reason

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.components != "auto":
            return (self,)
        most = min(signature.outputs[0], prod(signature.inputs))
        counts = dict.fromkeys(max(1, most // share) for share in _SHARES)
        return tuple(replace(self, components=count) for count in counts)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        names = " ".join(["i", *taps])
        columns = prod(signature.inputs)
        most = min(o, columns)
        r = most if self.components == "auto" else self.components
        equation = parse_equation(f"B[o r]#n A[r {names}]#m : {names} -> o")
        legs = {"o": o, "i": i, **taps, "r": r}
        bounds = (("n", o * r), ("m", columns * r))
        return Template(signature, equation, tuple(legs.items()), bounds, exact=r == most)
