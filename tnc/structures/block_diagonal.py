"""Block-diagonal weights: every group of outputs sees one group of inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, block_counts, kernel_legs, refuses_blocks
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
        return refuses_blocks(self.blocks, signature, str(self.blocks))

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.blocks != "auto":
            return (self,)
        return tuple(replace(self, blocks=g) for g in block_counts(signature))

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        blocks = block_counts(signature)[0] if self.blocks == "auto" else self.blocks
        names = " ".join(taps)
        legs = {"g": blocks, "o": -(-o // blocks), "i": -(-i // blocks)} | taps
        equation = parse_equation(f"A[g o i {names}] : (g i) {names} -> (g o)")
        return Template(signature, equation, tuple(legs.items()), (), exact=blocks == 1)
