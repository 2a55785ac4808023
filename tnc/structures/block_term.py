"""Block terms: sums of Tucker decompositions of equal size."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map, split
from tnc.structures.template import Template


@families.register("block-term")
@dataclass(frozen=True)
class BlockTerm(Family):
    """`W = sum_b G_b x_1 U_b x_2 V_b ..` (De Lathauwer, 2008; Ye et al., 2018).

    One index b of size `blocks` is carried by all cores. Linear weights are folded into `factors`
    modes a side; kernel modes of a convolution stay whole, on the core. One block is Tucker, blocks
    of rank one are CP.
    """

    blocks: int = 2
    factors: int = 2
    fit = "block-term-als"

    def refuses(self, signature: Signature) -> str:
        low = next((n for n in ("blocks", "factors") if getattr(self, n) < 1), "")
        if low:
            return f"{low} is {getattr(self, low)}, it must be 1 or more"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        parts = 1 if taps else self.factors
        outs, ins = split(o, "o", parts), split(i, "i", parts)
        modes = outs | ins
        ranks = {leg: f"r{leg}" for leg in modes}
        cores = [f"{leg.upper()}[b {leg} {rank}]" for leg, rank in ranks.items()]
        cores.append(f"G[b {' '.join([*ranks.values(), *taps])}]")
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(ins)}) {' '.join(taps)} -> ({' '.join(outs)})"
        )
        whole = prod(modes.values()) * prod(taps.values())
        bounds = tuple((ranks[leg], min(size, whole // size)) for leg, size in modes.items())
        legs = modes | taps | {"b": self.blocks}
        return Template(signature, equation, tuple(legs.items()), bounds)
