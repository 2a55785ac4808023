"""Block-diagonal weights: every group of outputs sees one group of inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, kernel_legs, one_map, some_divisors
from tnc.structures.template import Template


@families.register("block-diagonal")
@dataclass(frozen=True)
class BlockDiagonal(Family):
    """`W[g o, g' i] = [g = g'] A[g, o, i]`: a grouped layer, parameters o i / g.

    Not exact in general: what lies off the blocks is lost. The blocks are the weight's own in the
    plain norm, and least squares in a metric. Sizes that `blocks` does not divide are padded.
    """

    blocks: Count = "auto"
    fit = "als"

    def refuses(self, signature: Signature) -> str:
        if isinstance(self.blocks, int) and self.blocks < 1:
            return f"blocks is {self.blocks}, it must be 1 or more"
        reason = one_map(signature)
        if reason:
            return reason
        smaller = min(signature.outputs[0], signature.inputs[0])
        if isinstance(self.blocks, int) and self.blocks > smaller:
            return f"{self.blocks} blocks in a weight of {signature}"
        return ""

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.blocks != "auto":
            return (self,)
        return tuple(replace(self, blocks=g) for g in _choices(signature))

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        blocks = _choices(signature)[0] if self.blocks == "auto" else self.blocks
        names = " ".join(taps)
        legs = {"g": blocks, "o": -(-o // blocks), "i": -(-i // blocks)} | taps
        equation = parse_equation(f"A[g o i {names}] : (g i) {names} -> (g o)")
        return Template(signature, equation, tuple(legs.items()), (), exact=blocks == 1)


def _choices(signature: Signature) -> tuple[int, ...]:
    """Return common divisors to compare; two blocks with padding where there is none."""
    (o,), i = signature.outputs, signature.inputs[0]
    common = gcd(o, i)
    return some_divisors(common, 2) if common > 1 else (min(2, o, i),)
