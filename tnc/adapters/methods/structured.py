"""Deltas of any structure: trains, Tucker, Kronecker, block trains, CP, equations, sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tnc.adapters.equations import outermost, spread
from tnc.adapters.frames import framed, refuses_frames
from tnc.adapters.method import Method, methods
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError, TncError
from tnc.fit import fit_structure
from tnc.net import Signature, Structure
from tnc.structures import Family, families


@methods.register("structured")
@dataclass(frozen=True)
class Structured(Method):
    """`W + scale T`, T of any family of structures: `structured{family=tucker, rank=4}`.

    Every bond has the size `rank`, or what is the most of use to it; `ranks` gives bonds by name,
    and how many entries sparse cores store. In each term of T one core is zero, so that the model
    starts as the base: the trained one that is nearest to the output, since its gradient, the
    product of all others with dL/dW, is then not zero (that of a core before it would be, of two
    zero cores both). The others are normal of one variance, such that entries of what the zero core
    is applied to have a third of the variance of the input's, as in LoRA. LoHa is the equation
    `B[o r] A[r i] D[o s] C[s i] : i -> o` of `free-form`, LoKr is `kronecker` of rank 1, with
    low-rank parts an equation too. A stack of experts has such a delta for each. Trains the cores
    that are not marked frozen, as many entries as the structure has.

    With `first="gradient"` the cores beside the zero one Z are those of the mean gradient G of W
    fitted into T, as a frame: orthonormal towards Z times the same deviations, so that `T = J Z`
    with `J^T J = c`. The first step of SGD, `-rate J J^T G`, then is -rate c times the orthogonal
    projection of G onto what Z reaches, which is at least as near to G as the fit: for `low-rank`
    the best part of rank r. What LoRA-GA does for two factors, without an offset. It is for one
    network that is a tree and pads no axis.
    """

    family: Family = field(default_factory=lambda: families.get("tensor-train")())
    rank: int = 4
    ranks: Mapping[str, int] = field(default_factory=dict)
    scale: float = 1.0
    dropout: float = 0.0
    first: Literal["normal", "gradient"] = "normal"

    def __post_init__(self) -> None:
        if self.first == "gradient":
            object.__setattr__(self, "needs", ("gradient",))
        low = min(self.rank, *self.ranks.values()) if self.ranks else self.rank
        if low < 1:
            raise PlanError(f"rank is {low}", hint="a bond has a size from 1")
        if not 0 <= self.dropout < 1:
            raise PlanError(f"dropout is {self.dropout}", hint="give a share from 0 to below 1")

    def __hash__(self) -> int:
        ranks = tuple(sorted(self.ranks.items()))
        return hash((self.family, self.rank, ranks, self.scale, self.dropout, self.first))

    def refuses(self, site: Site) -> str:
        family = self._family(site.signature)
        if family.sought() is not None:
            return "a search for foldings is a plan's: name the family that it is to be"
        reason = family.refuses(site.signature)
        if reason:
            return reason
        try:
            structure = self.structure(site)
        except TncError as error:
            return error.message
        for term in structure.terms:
            kinds = {core.kind for core in term.equation.cores}
            if "constant" in kinds:
                return f"the values of the constant cores of {term.equation} are not known"
            if sum(1 for core in term.equation.cores if core.stored) > 1:
                return f"places of stored entries that meet in {term.equation} come of a fit alone"
            if "trainable" not in kinds:
                return f"no core of {term.equation} is trained"
        return refuses_frames(structure) if self.first == "gradient" else ""

    def structure(self, site: Site) -> Structure:
        family = self._family(site.signature)
        template = family.variants(site.signature)[0].template(site.signature)
        unknown = sorted(set(self.ranks) - set(template.bound))
        if unknown:
            raise PlanError(
                f"ranks name {unknown[0]!r}, which is no rank of {template.equation}",
                hint=f"ranks are {', '.join(template.bound)}",
            )
        asked = {name: self.ranks.get(name, self.rank) for name in template.bound}
        return template.at({name: min(asked[name], top) for name, top in template.bounds})

    def start(self, at: Start) -> Parts:
        if self.first == "gradient":
            return self._framed(at)
        cores: dict[str, Tensor] = {}
        positions: dict[str, Tensor] = {}
        for term in at.structure.terms:
            zero = outermost(term)
            std = spread(term, zero)
            for core in term.equation.cores:
                name = core.name
                cores[name] = at.zeros(name) if name == zero else at.normal(name, std)
                if core.stored:
                    order = torch.randperm(cores[name].numel(), generator=at.generator)
                    positions[name] = order[: term.stored(core)].sort().values.to(torch.int32)
                    cores[name] = cores[name].flatten()[positions[name].long()]
        return Parts(cores, positions=positions)

    def _framed(self, at: Start) -> Parts:
        (term,) = at.structure.terms
        zero = outermost(term)
        std = spread(term, zero)
        seed = int(torch.randint(1 << 31, (), generator=at.generator))
        fitted = fit_structure(at.given("gradient").double(), at.structure, seed=seed)
        found = framed(term, fitted.cores, zero)
        cores = {name: core * (std / core.square().mean().sqrt()) for name, core in found.items()}
        return Parts({**cores, zero: at.zeros(zero)})

    def factor(self, site: Site) -> float:
        return self.scale

    def _family(self, signature: Signature) -> Family:
        """Return the family of one weight, or that of a stack of them."""
        stacked = families.get("stacked")
        if len(signature.outputs) == 1 or isinstance(self.family, stacked):
            return self.family
        return stacked(of=self.family)  # type: ignore[call-arg]
