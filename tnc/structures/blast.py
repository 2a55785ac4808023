"""BLAST: block-level adaptive structured weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, block_counts, kernel_legs, refuses_blocks
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
        return refuses_blocks(self.blocks, signature, f"{self.blocks} x {self.blocks}")

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.blocks != "auto":
            return (self,)
        return tuple(replace(self, blocks=b) for b in block_counts(signature))

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        blocks = block_counts(signature)[0] if self.blocks == "auto" else self.blocks
        names = " ".join(taps)
        legs = {"p": blocks, "o": -(-o // blocks), "q": blocks, "i": -(-i // blocks)} | taps
        equation = parse_equation(f"U[p o r] S[p q r] V[q i r {names}] : (q i) {names} -> (p o)")
        bound = min(blocks * legs["o"], blocks * legs["i"] * prod(taps.values()))
        return Template(signature, equation, tuple(legs.items()), (("r", bound),))
