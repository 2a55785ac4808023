"""Tucker: a core and a factor for every mode; kernel modes of a convolution stay whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tnc.errors import PlanError
from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("tucker")
@dataclass(frozen=True)
class Tucker(Family):
    """`W = G x_1 U x_2 V`; linear weights of `factors` > 1 are folded into that many modes a side.

    Convolutions are Tucker-2 (Kim et al., 2016): a pointwise map, a small convolution, a pointwise
    map. Each rank is bounded by the mode it compresses.
    """

    factors: int = 1
    fit = "hosvd"

    def __post_init__(self) -> None:
        if self.factors < 1:
            raise PlanError(f"tucker: factors is {self.factors}", hint="use 1 or more")

    def refuses(self, signature: Signature) -> str:
        return ""

    def template(self, signature: Signature) -> Template:
        (o,), (i, *kernel) = signature.outputs, signature.inputs
        outs, ins = factorise(o, self.factors), factorise(i, self.factors)
        o_legs = [f"o{k + 1}" for k in range(self.factors)]
        i_legs = [f"i{k + 1}" for k in range(self.factors)]
        taps = ["w"] if len(kernel) == 1 else ["d", "h", "w"][3 - len(kernel) :] if kernel else []
        o_ranks = [f"r{k + 1}" for k in range(self.factors)]
        i_ranks = [f"s{k + 1}" for k in range(self.factors)]
        cores = [f"U{k + 1}[{o_legs[k]} {o_ranks[k]}]" for k in range(self.factors)]
        cores.append(f"G[{' '.join([*o_ranks, *i_ranks, *taps])}]")
        cores += [f"V{k + 1}[{i_ranks[k]} {i_legs[k]}]" for k in range(self.factors)]
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(i_legs)}) {' '.join(taps)} -> ({' '.join(o_legs)})"
        )
        modes = dict(zip(o_legs + i_legs, outs + ins)) | dict(zip(taps, kernel))
        whole = prod(modes.values())
        bounds = tuple(
            (rank, min(modes[leg], whole // modes[leg]))
            for rank, leg in zip(o_ranks + i_ranks, o_legs + i_legs)
        )
        return Template(signature, equation, tuple(modes.items()), bounds)
