"""TLoRA and TensorPoly: factors of low rank as sums of tensor products, mixed task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tnc.adapters.delta import Delta
from tnc.adapters.equations import spread
from tnc.adapters.method import Method, methods
from tnc.adapters.start import Parts, Start
from tnc.decide.site import Site
from tnc.errors import PlanError
from tnc.net import Structure, parse_network

Routing = Literal["whole", "orders"]


@methods.register("tlora")
@dataclass(frozen=True)
class TLoRA(Method):
    """`W + (alpha / r) B A`, whose rows are tensor products: `A[r] = sum_s p_s a_1s x .. x a_Ns`.

    A side of n entries is `order` legs of `ceil(n^(1 / order))`, cropped; B alike, of the outputs.
    With `skills` S the products are mixed by weights p of the task: with routing `whole` after the
    products (TensorPoly-I), `orders` mixes each leg before them, `A[r] = x_k (sum_s p_ks a_ks)`
    (TensorPoly-II). A and B have the same weights, `p = sigmoid(logits) / sum`, logits (tasks, S)
    or (tasks, order, S) trained. The delta's constant `task` says which row acts, in calls, merging
    and export: `adapters.set_("task", 1)`. The first leg of B starts at zero, so that the model is
    the base; the authors draw all. Their LayerNorm of pairwise products is left out: with it a
    delta is not multilinear, and cannot be merged. Kernel axes of a convolution are with the first
    leg of A. With order 1 it is Poly, and LoRA with one skill. Trains order S r (q_o + q_i) entries
    and the logits. (Su et al., TensorPoly, 2024.)
    """

    sized_by: ClassVar[str] = "rank"

    rank: int = 8
    order: int = 2
    skills: int = 1
    tasks: int = 1
    routing: Routing = "whole"
    alpha: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rank", "order", "skills", "tasks"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}", hint="give 1 or more")
        if not 0 <= self.dropout < 1:
            raise PlanError(f"dropout is {self.dropout}", hint="give a share from 0 to below 1")

    def structure(self, site: Site) -> Structure:
        signature, mixed = site.signature, self.skills > 1
        stack = "e " if len(signature.outputs) > 1 else ""
        sizes = {"e": signature.outputs[0]} if stack else {}
        taps = [f"w{k}" for k in range(1, len(signature.inputs))]
        sizes |= dict(zip(taps, signature.inputs[1:])) | {"r": self.rank}
        cores: list[str] = []
        sides: dict[str, str] = {}
        for leg, name, skill, extent in (
            ("o", "B", "t", signature.outputs[-1]),
            ("i", "A", "s", signature.inputs[0]),
        ):
            numbers = range(1, self.order + 1)
            sides[leg] = " ".join(f"{leg}{k}" for k in numbers)
            sizes |= {f"{leg}{k}": _leaf(extent, self.order) for k in numbers}
            for k in numbers:
                own = skill if self.routing == "whole" else f"{skill}{k}"
                kernel = " ".join(taps) if (name, k) == ("A", 1) else ""
                if mixed and (self.routing == "orders" or k == 1):
                    cores.append(f"P{own}[{own}]=")
                    sizes[own] = self.skills
                cores.append(f"{name}{k}[{stack}{own if mixed else ''} r {leg}{k} {kernel}]")
        text = f"{' '.join(cores)} : ({sides['i']}) {' '.join(taps)} -> {stack}({sides['o']}) | "
        text += " ".join(f"{name}={size}" for name, size in sizes.items())
        return Structure.of(parse_network(text), signature=signature)

    def start(self, at: Start) -> Parts:
        term, kinds = at.structure.terms[0], at.structure.kinds
        squares = {name: self.skills**-2.0 for name, kind in kinds.items() if kind == "constant"}
        std = spread(term, "B1", squares)
        cores = {
            name: torch.full(at.structure.shapes[name], 1 / self.skills)
            if name in squares
            else at.normal(name, std)
            for name in kinds
        }
        cores["B1"] = at.zeros("B1")
        if self.skills == 1:
            return Parts(cores)
        logits = (2 * torch.rand(self._logits, generator=at.generator) - 1) * 1e-3
        return Parts(cores, {"logits": logits}, {"task": torch.tensor(0)})

    def tensors(self, delta: Delta) -> Mapping[str, Tensor]:
        cores = dict(delta.layer.tensors().items())  # dict(ParameterDict) cannot be traced
        if self.skills == 1:
            return cores
        gates = torch.sigmoid(delta.extras["logits"][delta.constant("task")])
        gates = gates / gates.sum(-1, keepdim=True)
        for name, kind in delta.layer.structure.kinds.items():
            if kind == "constant":  # Ps, Pt or Ps1, Pt1, Ps2, ..
                cores[name] = gates[int(name[2:]) - 1] if len(name) > 2 else gates
        return cores

    def factor(self, site: Site) -> float:
        return self.alpha / self.rank

    def trained(self, site: Site, weight: Callable[[], Tensor]) -> int:
        logits = prod(self._logits) if self.skills > 1 else 0
        return super().trained(site, weight) + logits

    @property
    def _logits(self) -> tuple[int, ...]:
        by_leg = (self.order,) if self.routing == "orders" else ()
        return (self.tasks, *by_leg, self.skills)


def _leaf(size: int, order: int) -> int:
    """Return the least q with `q ** order` of `size` or more."""
    found: int = max(1, round(size ** (1 / order)) - 1)
    while found**order < size:
        found += 1
    return found
