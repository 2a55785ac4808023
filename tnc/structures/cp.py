"""CP: a sum of rank-one tensors; one index meets every core."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("cp")
@dataclass(frozen=True)
class CP(Family):
    """`W[o.., i..] = sum_r prod_n A_n[mode_n, r]`; linear weights fold into `factors` modes a side.

    The bound on the rank is the smallest product of all modes but one, at which the decomposition
    is exact; alternating least squares reaches it only approximately (Kolda and Bader, 2009).
    """

    factors: int = 2
    fit = "cp-epc"

    def refuses(self, signature: Signature) -> str:
        if self.factors < 1:
            return f"factors is {self.factors}, it must be 1 or more"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *kernel) = signature.outputs, signature.inputs
        parts = 1 if kernel else self.factors
        o_legs = ["o"] if parts == 1 else [f"o{k + 1}" for k in range(parts)]
        i_legs = ["i"] if parts == 1 else [f"i{k + 1}" for k in range(parts)]
        taps = ["d", "h", "w"][3 - len(kernel) :] if kernel else []
        modes = dict(zip(o_legs, factorise(o, parts))) | dict(zip(i_legs, factorise(i, parts)))
        modes |= dict(zip(taps, kernel))
        cores = " ".join(f"{name.upper()}[{name} r]" for name in modes)
        equation = parse_equation(
            f"{cores} : ({' '.join(i_legs)}) {' '.join(taps)} -> ({' '.join(o_legs)})"
        )
        bound = prod(modes.values()) // max(modes.values())
        return Template(signature, equation, tuple(modes.items()), (("r", bound),))
