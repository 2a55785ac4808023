"""Block tensor trains: the Monarch structure with a rank."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.net import Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.folding import refuses_modes
from tnc.structures.legs import one_map
from tnc.structures.template import Template


@families.register("block-tensor-train")
@dataclass(frozen=True)
class BlockTensorTrain(Family):
    """`W[o1 o2, i1 i2] = sum_r L[o1 o2 i2 r] R[o2 i1 i2 r]` (Dao et al., 2022; Qiu et al., 2024).

    Every block (o2, i2) of the weight is a matrix of rank r, so the best fit is one truncated SVD a
    block. Convolutions keep the kernel in R. `output_modes` (o1, o2) and `input_modes` (i1, i2) say
    how a matrix is folded, else as evenly as can be.
    """

    output_modes: tuple[int, ...] = ()
    input_modes: tuple[int, ...] = ()

    fit = "block-svd"

    def refuses(self, signature: Signature) -> str:
        return one_map(signature) or refuses_modes(
            signature, 2, self.output_modes, self.input_modes
        )

    def template(self, signature: Signature) -> Template:
        (o,), (i, *kernel) = signature.outputs, signature.inputs
        o1, o2 = self.output_modes or factorise(o, 2)[::-1]
        i1, i2 = self.input_modes or factorise(i, 2)[::-1]
        taps = ["d", "h", "w"][3 - len(kernel) :] if kernel else []
        text = " ".join(taps)
        equation = parse_equation(f"L[o1 o2 i2 r] R[o2 i1 i2 r {text}] : (i1 i2) {text} -> (o1 o2)")
        legs = {"o1": o1, "o2": o2, "i1": i1, "i2": i2} | dict(zip(taps, kernel))
        taps_size = 1
        for size in kernel:
            taps_size *= size
        return Template(signature, equation, tuple(legs.items()), (("r", min(o1, i1 * taps_size)),))
