"""Tucker with a core in CP form."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map, split
from tnc.structures.template import Template


@families.register("tucker-cp")
@dataclass(frozen=True)
class TuckerCP(Family):
    """`W = sum_r (U A_r) (x) (V B_r) (x) C_r ..` (Phan et al., 2020).

    Tucker-2, then CP of its core. Linear weights are folded into `factors` modes a side, each
    with a basis; kernel modes of a convolution have none. Useful where the CP rank is larger than
    the modes it connects.
    """

    factors: int = 2
    fit = "tucker-cp"

    def refuses(self, signature: Signature) -> str:
        if self.factors < 1:
            return f"factors is {self.factors}, it must be 1 or more"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        parts = 1 if taps else self.factors
        outs, ins = split(o, "o", parts), split(i, "i", parts)
        modes = outs | ins
        ranks = {leg: f"r{leg}" for leg in modes}
        cores = [f"U{leg}[{leg} {rank}]" for leg, rank in ranks.items()]
        cores += [f"A{leg}[{rank} r]" for leg, rank in ranks.items()]
        cores += [f"A{leg}[{leg} r]" for leg in taps]
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(ins)}) {' '.join(taps)} -> ({' '.join(outs)})"
        )
        whole = prod(modes.values()) * prod(taps.values())
        tops = {leg: min(size, whole // size) for leg, size in modes.items()}
        middle = [*tops.values(), *taps.values()]
        bounds = [(ranks[leg], top) for leg, top in tops.items()]
        bounds.append(("r", prod(middle) // max(middle)))
        return Template(signature, equation, tuple((modes | taps).items()), tuple(bounds))
