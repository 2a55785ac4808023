"""Sums of Kronecker products."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("kronecker")
@dataclass(frozen=True)
class Kronecker(Family):
    """`W = sum_k A_k (x) C_k`: `A[k o1 i1] C[k o2 i2]` (Van Loan and Pitsianis, 1993).

    The best sum of k products is a truncated SVD of the rearranged weight. Convolutions keep the
    kernel in C.
    """

    fit = "van-loan"

    def refuses(self, signature: Signature) -> str:
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *kernel) = signature.outputs, signature.inputs
        (o1, o2), (i1, i2) = factorise(o, 2), factorise(i, 2)
        taps = ["d", "h", "w"][3 - len(kernel) :] if kernel else []
        text = " ".join(taps)
        equation = parse_equation(f"A[k o1 i1] C[k o2 i2 {text}] : (i1 i2) {text} -> (o1 o2)")
        legs = {"o1": o1, "o2": o2, "i1": i1, "i2": i2} | dict(zip(taps, kernel))
        bound = min(o1 * i1, o2 * i2 * prod(kernel))
        return Template(signature, equation, tuple(legs.items()), (("k", bound),))
