"""Tensor rings: trains closed by one more bond."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.chain_modes import chain_modes
from tnc.structures.family import Family, families
from tnc.structures.folding import refuses_modes
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("tensor-ring")
@dataclass(frozen=True)
class TensorRing(Family):
    """`W = G1[r0 o1 i1 r1] G2[r1 o2 i2 r2] ... GN[.. r0]` (Zhao et al., 2016).

    With the closing rank r0 = 1 the ring is a train, so train ranks bound the others; the closing
    rank is bounded so that the ring never costs more than a train of full rank. Modes are as in a
    train.
    """

    factors: int = 3
    output_modes: tuple[int, ...] = ()
    input_modes: tuple[int, ...] = ()
    fit = "ring-als"

    def refuses(self, signature: Signature) -> str:
        if len(signature.inputs) == 1 and self.factors < 3:
            return f"factors is {self.factors}: a ring has 3 cores or more, one of 2 is a train"
        return one_map(signature) or refuses_modes(
            signature, self.factors, self.output_modes, self.input_modes
        )

    def template(self, signature: Signature) -> Template:
        groups, sizes, legs = chain_modes(
            signature, self.factors, self.output_modes, self.input_modes
        )
        extents = [prod(sizes[name] for name in group) for group in groups]
        count = len(groups)
        cores = [
            f"G{k + 1}[{' '.join([f'r{k}', *group, f'r{(k + 1) % count}'])}]"
            for k, group in enumerate(groups)
        ]
        bounds = [("r0", min(extents[0], extents[-1]))]
        for k in range(1, count):
            bounds.append((f"r{k}", min(prod(extents[:k]), prod(extents[k:]))))
        equation = parse_equation(f"{' '.join(cores)} : {legs}")
        return Template(signature, equation, tuple(sizes.items()), tuple(bounds))
