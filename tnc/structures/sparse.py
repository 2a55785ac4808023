"""Sparse: the weight itself, of which only some entries are kept."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("sparse")
@dataclass(frozen=True)
class Sparse(Family):
    """`W = S` with n stored entries: n parameters, and n positions of four bytes.

    Beside another structure, as in `low-rank + sparse`, it holds the outliers that no rank reaches.
    """

    fit = "sparse"

    def refuses(self, signature: Signature) -> str:
        return ""

    def template(self, signature: Signature) -> Template:
        outputs = _names("o", len(signature.outputs))
        inputs = _names("i", len(signature.inputs))
        legs = (*zip(outputs, signature.outputs), *zip(inputs, signature.inputs))
        o, i = " ".join(outputs), " ".join(inputs)
        equation = parse_equation(f"S[{o} {i}]#n : {i} -> {o}")
        return Template(signature, equation, legs, (("n", signature.parameters),))


def _names(side: str, count: int) -> list[str]:
    """Return the names of one side's legs: those of a convolution's kernel are w, h, d."""
    if side == "i" and 1 < count <= 4:
        return ["i", *["d", "h", "w"][4 - count :]]
    return [side] if count == 1 else [f"{side}{place + 1}" for place in range(count)]
