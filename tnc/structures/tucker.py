"""Tucker: a core, and a factor for every mode; kernel modes stay whole unless asked."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.errors import PlanError
from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map
from tnc.structures.template import Template


@families.register("tucker")
@dataclass(frozen=True)
class Tucker(Family):
    """`W = G x_1 U x_2 V`; linear weights of `factors` > 1 are folded into that many modes a side.

    Convolutions are Tucker-2 (Kim et al., 2016): a pointwise map, a small convolution, a pointwise
    map. With `spatial`, kernel modes are compressed too: `K1[t1 h]`, `K2[t2 w]`. Each rank is
    bounded by the mode it compresses.
    """

    factors: int = 1
    spatial: bool = False
    fit = "hosvd"

    def __post_init__(self) -> None:
        if self.factors < 1:
            raise PlanError(f"tucker: factors is {self.factors}", hint="use 1 or more")

    def refuses(self, signature: Signature) -> str:
        return one_map(signature)

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        outs, ins = factorise(o, self.factors), factorise(i, self.factors)
        o_legs = [f"o{k + 1}" for k in range(self.factors)]
        i_legs = [f"i{k + 1}" for k in range(self.factors)]
        taps = kernel_legs(signature)
        modes = dict(zip(o_legs + i_legs, outs + ins)) | taps
        o_ranks = {leg: f"r{k + 1}" for k, leg in enumerate(o_legs)}
        i_ranks = {leg: f"s{k + 1}" for k, leg in enumerate(i_legs)}
        t_ranks = {leg: f"t{k + 1}" for k, leg in enumerate(taps)} if self.spatial else {}
        ranks = o_ranks | i_ranks | t_ranks
        cores = [f"U{k + 1}[{leg} {ranks[leg]}]" for k, leg in enumerate(o_legs)]
        cores.append(f"G[{' '.join(ranks.get(leg, leg) for leg in modes)}]")
        cores += [f"K{k + 1}[{rank} {leg}]" for k, (leg, rank) in enumerate(t_ranks.items())]
        cores += [f"V{k + 1}[{ranks[leg]} {leg}]" for k, leg in enumerate(i_legs)]
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(i_legs)}) {' '.join(taps)} -> ({' '.join(o_legs)})"
        )
        whole = prod(modes.values())
        bounds = tuple((rank, min(modes[leg], whole // modes[leg])) for leg, rank in ranks.items())
        return Template(signature, equation, tuple(modes.items()), bounds)
