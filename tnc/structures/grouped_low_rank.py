"""Grouped low rank: input channels in groups, a matrix of low rank for each (ALDS)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import Count, kernel_legs, one_map, some_divisors
from tnc.structures.template import Template


@families.register("grouped-low-rank")
@dataclass(frozen=True)
class GroupedLowRank(Family):
    """`W[o, g i] = sum_r B[g, o, r] A[g, r, i]` (Liebenwein et al., ALDS, 2021).

    Parameters r (g o + i). `scheme` puts the kernel modes of a convolution: 0 all on A, 3 all on B,
    1 the last on B and the others on A, 2 the first on B and the others on A; without a kernel the
    four coincide. Inputs that `groups` does not divide are padded. The optimum in the plain norm
    is one truncated SVD a group; a metric that couples inputs of two groups couples the groups.
    """

    groups: Count = "auto"
    scheme: Literal[0, 1, 2, 3] = 0
    fit = "block-svd"

    def refuses(self, signature: Signature) -> str:
        if isinstance(self.groups, int) and self.groups < 1:
            return f"groups is {self.groups}, it must be 1 or more"
        reason = one_map(signature)
        if reason:
            return reason
        if isinstance(self.groups, int) and self.groups > signature.inputs[0]:
            return f"{self.groups} groups of {signature.inputs[0]} inputs"
        if self.scheme in (1, 2) and len(signature.inputs) == 2:
            return f"scheme {self.scheme} splits kernel modes, the weight has one"
        return ""

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        if self.groups != "auto":
            return (self,)
        return tuple(replace(self, groups=g) for g in some_divisors(signature.inputs[0], 1))

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        groups = some_divisors(i, 2)[0] if self.groups == "auto" else self.groups
        names = list(taps)
        on_b = {0: [], 1: names[-1:], 2: names[:1], 3: names}[self.scheme]
        on_a = [name for name in names if name not in on_b]
        legs = {"g": groups, "o": o, "i": -(-i // groups)} | taps
        equation = parse_equation(
            f"B[g o r {' '.join(on_b)}] A[g r i {' '.join(on_a)}] : (g i) {' '.join(names)} -> o"
        )
        sides = [o * prod(taps[n] for n in on_b), legs["i"] * prod(taps[n] for n in on_a)]
        return Template(signature, equation, tuple(legs.items()), (("r", min(sides)),))
