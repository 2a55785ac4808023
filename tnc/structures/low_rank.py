"""Low rank: `W = B A`. Convolutions: A holds the kernel, B is pointwise."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("low-rank")
@dataclass(frozen=True)
class LowRank(Family):
    """`W[o, i] = sum_r B[o, r] A[r, i]`; parameters r (o + i).

    In a stack of weights (experts, or layers joined by a rule) each has factors of its own, or one
    factor is `shared` by all: that at the `input` (Basis Sharing: Wang et al., 2025), or that at
    the `output`.
    """

    shared: Literal["none", "input", "output"] = "none"
    fit = "svd"

    def refuses(self, signature: Signature) -> str:
        if self.shared != "none" and len(signature.outputs) == 1:
            return f"nothing can share its {self.shared} factor: it is one weight, not a stack"
        return ""

    def template(self, signature: Signature) -> Template:
        *stack, o = signature.outputs
        names = _INPUTS[len(signature.inputs)]
        count = [f"e{k + 1}" for k in range(len(stack))]
        out = " ".join([*([] if self.shared == "output" else count), "o r"])
        into = " ".join([*([] if self.shared == "input" else count), f"r {names}"])
        equation = parse_equation(f"B[{out}] A[{into}] : {names} -> {' '.join([*count, 'o'])}")
        legs = (*zip(count, stack), ("o", o), *zip(names.split(), signature.inputs))
        many = prod(stack)
        rows = o * (many if self.shared == "input" else 1)
        columns = prod(signature.inputs) * (many if self.shared == "output" else 1)
        return Template(signature, equation, legs, (("r", min(rows, columns)),))


_INPUTS = {1: "i", 2: "i w", 3: "i h w", 4: "i d h w"}
