"""Tensor train matrices, and trains through the modes of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.chain_modes import chain_modes
from tnc.structures.family import Family, families
from tnc.structures.folding import refuses_modes
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("tensor-train")
@dataclass(frozen=True)
class TensorTrain(Family):
    """`W = G1[o1 i1 r1] G2[r1 o2 i2 r2] ...` (Oseledets, 2011; Novikov et al., 2015).

    Each rank is bounded by the smaller side of its unfolding. Convolutions run through input,
    kernel modes and output. `output_modes` and `input_modes` say how a matrix is folded, else
    `factors` modes each as even as they can be.
    """

    factors: int = 2
    output_modes: tuple[int, ...] = ()
    input_modes: tuple[int, ...] = ()
    fit = "train-svd"

    def refuses(self, signature: Signature) -> str:
        if self.factors < 2:
            return f"factors is {self.factors}, a train has 2 or more"
        return one_map(signature) or refuses_modes(
            signature, self.factors, self.output_modes, self.input_modes
        )

    def template(self, signature: Signature) -> Template:
        groups, sizes, legs = chain_modes(
            signature, self.factors, self.output_modes, self.input_modes
        )
        extents = [prod(sizes[name] for name in group) for group in groups]
        cores, bounds = [], []
        for k, group in enumerate(groups):
            left = [f"r{k}"] if k else []
            right = [f"r{k + 1}"] if k + 1 < len(groups) else []
            cores.append(f"G{k + 1}[{' '.join([*left, *group, *right])}]")
            if right:
                bounds.append((right[0], min(prod(extents[: k + 1]), prod(extents[k + 1 :]))))
        equation = parse_equation(f"{' '.join(cores)} : {legs}")
        return Template(signature, equation, tuple(sizes.items()), tuple(bounds))
