"""Fully connected networks: a bond between every pair of cores."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import prod

from tnc.net import Signature, parse_equation
from tnc.structures.chain_modes import chain_modes
from tnc.structures.family import Family, families
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("fully-connected")
@dataclass(frozen=True)
class FullyConnected(Family):
    """`G_k[legs_k, r_1k .. r_kN]`, every two cores share a bond (Zheng et al., FCTN, 2021).

    Cores are those of `tensor-train`: `factors` pairs of output and input modes, or input, kernel
    modes and output of a convolution. Three cores are the triple decomposition (Qi et al., 2021)
    and a ring, two are a train. Bonds between neighbours are bounded as in a train, at which the
    network is exact, others by the smaller of their cores.
    """

    factors: int = 3
    fit = "graph-als"

    def refuses(self, signature: Signature) -> str:
        if len(signature.inputs) == 1 and self.factors < 2:
            return f"factors is {self.factors}, a network has 2 cores or more"
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        groups, sizes, legs = chain_modes(signature, self.factors)
        extents = [prod(sizes[name] for name in group) for group in groups]
        held = [list(group) for group in groups]
        bounds = []
        for a, b in combinations(range(len(groups)), 2):
            bond = f"r{a + 1}_{b + 1}"
            held[a].append(bond)
            held[b].append(bond)
            train = min(prod(extents[:b]), prod(extents[b:]))
            bounds.append((bond, train if b == a + 1 else min(extents[a], extents[b])))
        cores = [f"G{k}[{' '.join(indices)}]" for k, indices in enumerate(held, 1)]
        equation = parse_equation(f"{' '.join(cores)} : {legs}")
        return Template(signature, equation, tuple(sizes.items()), tuple(bounds))
