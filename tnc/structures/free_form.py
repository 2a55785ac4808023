"""Free form: the user writes the equation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from tnc.derive.cut import cut
from tnc.errors import EquationError, PlanError
from tnc.net import Equation, Signature, parse_equation
from tnc.structures.factorise import factorise
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("free-form")
@dataclass(frozen=True)
class FreeForm(Family):
    """Any equation, such as `"L[o1 i1 r] M[r o2 i2 s] N[s o3 i3] : i1 i2 i3 -> o1 o2 o3"`.

    `sizes` may fix legs and ranks; legs that it leaves open are split evenly, ranks that it leaves
    open are chosen by the plan. A bond that cuts the network in two is bounded by the smaller side
    of its unfolding; any other by the largest core that it could need.
    """

    equation: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    fit = "als"

    def __hash__(self) -> int:
        return hash((self.equation, tuple(sorted(self.sizes.items()))))

    def refuses(self, signature: Signature) -> str:
        try:
            self.template(signature)
        except (EquationError, PlanError) as error:
            return error.message
        return ""

    def template(self, signature: Signature) -> Template:
        equation = parse_equation(self.equation).regrouped(
            len(signature.outputs), len(signature.inputs)
        )
        unknown = sorted(set(self.sizes) - set(equation.indices))
        if unknown:
            raise PlanError(
                f"sizes name {unknown[0]!r}, which is no index of {self.equation!r}",
                hint=f"indices are {', '.join(equation.indices)}",
            )
        legs: dict[str, int] = {}
        for axis, extent in zip(
            equation.outputs + equation.inputs, signature.outputs + signature.inputs
        ):
            legs.update(self._split(axis, extent, legs))
        fixed = {n: s for n, s in self.sizes.items() if n in equation.bonds}
        open_bonds = [n for n in equation.bonds if n not in fixed]
        bounds = tuple((name, _bound(equation, name, legs)) for name in open_bonds)
        return Template(signature, equation, tuple((legs | fixed).items()), bounds, exact=not fixed)

    def _split(
        self, axis: tuple[str, ...], extent: int, known: Mapping[str, int]
    ) -> dict[str, int]:
        given = {n: self.sizes.get(n, known.get(n, 0)) for n in axis}
        open_legs = [n for n in axis if not given[n]]
        covered = prod(size for size in given.values() if size)
        if not open_legs:
            if covered < extent:
                raise PlanError(
                    f"legs {' '.join(axis)} cover {covered}, the weight has {extent}",
                    hint="raise a size in 'sizes'",
                )
            return given
        rest = -(-extent // covered)
        return given | dict(zip(open_legs, factorise(rest, len(open_legs))))


def _bound(equation: Equation, bond: str, legs: Mapping[str, int]) -> int:
    parted = cut(equation, bond)
    if parted:
        return max(1, min(prod(legs[n] for n in side) for side in (parted.left, parted.right)))
    held = [
        prod(legs.get(n, 1) for n in core.indices)
        for core in equation.cores
        if bond in core.indices
    ]
    return max(1, prod(held) // max(held))
