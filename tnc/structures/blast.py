"""BLAST: block-level adaptive structured weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, kernel_legs, one_map, some_divisors
from tnc.structures.template import Template


@families.register("blast")
@dataclass(frozen=True)
class Blast(Family):
    """`W_pq = U_p diag(s_pq) V_q^T`: `U[p o r] S[p q r] V[q i r]` (Lee et al., 2024).

    Low rank is s = 1, block-diagonal low rank is s_pq = 0 off the diagonal. Parameters
    r (o + i + blocks^2). Kernel modes of a convolution lie on V. Sizes that `blocks` does not
    divide are padded.
    """

    blocks: Count = 2
    fit = "blast-als"

    def refuses(self, signature: Signature) -> str:
        if isinstance(self.blocks, int) and self.blocks < 1:
            return f"blocks is {self.blocks}, it must be 1 or more"
        reason = one_map(signature)
        if reason:
            return reason
        smaller = min(signature.outputs[0], signature.inputs[0])
        if isinstance(self.blocks, int) and self.blocks > smaller:
            return f"{self.blocks} x {self.blocks} blocks in a weight of {signature}"
        return ""

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.blocks != "auto":
            return (self,)
        return tuple(replace(self, blocks=b) for b in _choices(signature))

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        blocks = _choices(signature)[0] if self.blocks == "auto" else self.blocks
        names = " ".join(taps)
        legs = {"p": blocks, "o": -(-o // blocks), "q": blocks, "i": -(-i // blocks)} | taps
        equation = parse_equation(f"U[p o r] S[p q r] V[q i r {names}] : (q i) {names} -> (p o)")
        bound = min(blocks * legs["o"], blocks * legs["i"] * prod(taps.values()))
        return Template(signature, equation, tuple(legs.items()), (("r", bound),))


def _choices(signature: Signature) -> tuple[int, ...]:
    """Return common divisors to compare; two blocks with padding where there is none."""
    (o,), i = signature.outputs, signature.inputs[0]
    common = gcd(o, i)
    return some_divisors(common, 2) if common > 1 else (min(2, o, i),)
