"""Low rank: `W = B A`. Convolutions: A holds the kernel, B is pointwise."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("low-rank")
@dataclass(frozen=True)
class LowRank(Family):
    """`W[o, i] = sum_r B[o, r] A[r, i]`; parameters r (o + i)."""

    fit = "svd"

    def refuses(self, signature: Signature) -> str:
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,) = signature.outputs
        names = _INPUTS[len(signature.inputs)]
        equation = parse_equation(f"B[o r] A[r {names}] : {names} -> o")
        legs = (("o", o), *zip(names.split(), signature.inputs))
        return Template(signature, equation, legs, (("r", min(o, prod(signature.inputs))),))


_INPUTS = {1: "i", 2: "i w", 3: "i h w", 4: "i d h w"}
