"""Stacks of weights, as the experts of a mixture: a structure of a family for each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tnc.net import Equation, Signature
from tnc.structures.family import Family, families
from tnc.structures.template import Template


@families.register("stacked")
@dataclass(frozen=True)
class Stacked(Family):
    """`W[e, o, i]`: the structure `of` another family for each e, on cores with a leg `e`.

    Cores named in `shared` have none: all weights of the stack use them. Of low-rank:
    `B[e o r] A[e r i]`, with `shared: [A]` one input factor `A[r i]` (Basis Sharing: Wang et al.,
    2025) whose rank may be as large as the inputs. At least one core keeps the leg. Stacks are
    3-mode parameters, and layers that a rule makes `joint`.
    """

    of: Family
    shared: tuple[str, ...] = ()
    fit = "auto"

    def refuses(self, signature: Signature) -> str:
        if len(signature.outputs) != 2:
            return f"{signature} is one weight, no stack (e x o <- i)"
        matrix = _matrix(signature)
        reason = self.of.refuses(matrix)
        if reason:
            return reason
        inner = self.of.template(matrix)
        if inner.parts:
            return "a sum cannot be stacked"
        if any(core.stored for core in inner.equation.cores):
            return "cores that store some of their entries cannot be stacked"
        names = [core.name for core in inner.equation.cores]
        unknown = [name for name in self.shared if name not in names]
        if unknown:
            return f"shared names no core {unknown[0]!r}, there are {', '.join(names)}"
        return "" if set(names) - set(self.shared) else "every core is shared, none is left"

    def variants(self, signature: Signature) -> tuple[Family, ...]:
        inner = self.of.variants(_matrix(signature))
        return tuple(replace(self, of=member) for member in inner)

    def template(self, signature: Signature) -> Template:
        inner, e = self.of.template(_matrix(signature)), signature.outputs[0]
        name = "e"
        while name in inner.equation.indices:
            name += "'"
        cores = tuple(
            core if core.name in self.shared else replace(core, indices=(name, *core.indices))
            for core in inner.equation.cores
        )
        equation = Equation(cores, inner.equation.inputs, ((name,), *inner.equation.outputs))
        bounds = inner.bounds
        if self.shared:
            largest = signature.parameters // min(signature.shape)
            bounds = tuple((rank, min(bound * e, largest)) for rank, bound in inner.bounds)
        legs = ((name, e), *inner.legs)
        return Template(signature, equation, legs, bounds, inner.exact)


def _matrix(signature: Signature) -> Signature:
    return Signature(signature.outputs[1:], signature.inputs)
