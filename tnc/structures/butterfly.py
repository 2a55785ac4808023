"""Butterflies: products of block matrices that mix one factor of the dimension at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map, split
from tnc.structures.template import Template


@families.register("butterfly")
@dataclass(frozen=True)
class Butterfly(Family):
    """`W = C_m .. C_2 C_1`, each `C_k[o1..ok, ik..im, r_k-1, r_k]` (Dao et al., 2019).

    Factor k turns the input leg i_k into the output leg o_k, for every value of the others. Two
    factors are the block tensor train (Monarch), its legs in another order; more factors of size 2
    approach the butterfly of the fast Fourier transform. Every bond parts the weight into blocks,
    so that truncated SVDs one after another fit it, exactly at full rank. Kernel modes of a
    convolution lie on C_1.
    """

    factors: int = 2
    fit = "tree-svd"

    def refuses(self, signature: Signature) -> str:
        if self.factors < 2:
            return f"factors is {self.factors}, a butterfly has 2 or more"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        outs, ins = split(o, "o", self.factors), split(i, "i", self.factors)
        o_legs, i_legs = list(outs), list(ins)
        cores, bounds = [], []
        for k in range(self.factors):
            legs = [*o_legs[: k + 1], *i_legs[k:], *(taps if k == 0 else ())]
            before = [f"r{k}"] if k else []
            after = [f"r{k + 1}"] if k + 1 < self.factors else []
            cores.append(f"C{k + 1}[{' '.join([*legs, *before, *after])}]")
            if after:
                done = prod(ins[n] for n in i_legs[: k + 1]) * prod(taps.values())
                left = prod(outs[n] for n in o_legs[k + 1 :])
                bounds.append((after[0], min(done, left)))
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(ins)}) {' '.join(taps)} -> ({' '.join(outs)})"
        )
        return Template(signature, equation, tuple((outs | ins | taps).items()), tuple(bounds))
