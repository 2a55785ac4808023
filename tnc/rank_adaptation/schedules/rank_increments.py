"""Start small, and add ranks where the gradient says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import PlanError
from tnc.fit.folding import fold
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Core, Equation, Network, Signature, Structure
from tnc.rank_adaptation.adapted import Adapted
from tnc.rank_adaptation.schedule import Schedule, schedules
from tnc.rank_adaptation.star import star_of
from tnc.rank_adaptation.tree import ends, unfold


@schedules.register("rank-increments")
@dataclass(frozen=True)
class RankIncrements(Schedule):
    """Every `every` steps, add up to `by` ranks to the bonds that the gradient asks for most.

    The dense gradient of one step, pulled back to the two cores of a bond taken as one and cleared
    of what their present ranges reach, has as its leading singular vectors the directions in which
    the loss falls fastest. One side takes such a direction, the other zero: the function stays, and
    the next gradient fills it in. Bonds whose leading singular value is at least `share` of the
    largest in the model grow, up to `most` (0: what is of use).
    """

    every: int = 50
    by: int = 1
    share: float = 0.5
    most: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.by < 1 or self.most < 0 or not 0 < self.share <= 1:
            raise PlanError("rank-increments: every, by at least 1, 0 < share <= 1")

    def refuses(self, work: Adapted) -> str:
        star = star_of(work.network)
        if star is not None and star.cuts < len(star.leaves):
            return "two of its bonds part the same legs and can only grow together; use low-rank"
        return work.unhooked

    def begin_(self, work: Adapted) -> None:
        structure = dense_structure(work.layer.structure.signature)
        prepared = work.layer.view.prepare(structure)
        work.memory["asked"] = self.every == 1

        def probe(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if not (work.memory["asked"] and layer.training and output.requires_grad):
                return output
            if "probe" not in work.passing:
                like = next(iter(work.values.values()))
                work.passing["probe"] = like.new_zeros(
                    structure.signature.shape, requires_grad=True
                )
            cores = {"W": work.passing["probe"]}
            return output + work.layer.view.apply(prepared, cores, None, *inputs)

        work.passing["hook"] = work.layer.register_forward_hook(probe)

    @torch.no_grad()
    def after_(self, works: Sequence[Adapted], step: int) -> None:
        if step % self.every == 0:
            self._grow_(works)
        for work in works:
            work.passing.pop("probe", None)
            work.memory["asked"] = (step + 1) % self.every == 0

    def _grow_(self, works: Sequence[Adapted]) -> None:
        wanted = []
        for work in works:
            probe = work.passing.pop("probe", None)
            if probe is None or probe.grad is None:
                continue
            folded = fold(probe.grad, work.network)
            for bond in sorted(work.ranks):
                values, rows = two_core_gradient(work.network, work.values, bond, folded)
                room = (self.most or 1 << 30) - work.ranks[bond]
                count = min(self.by, room, len(values), _room(work, bond))
                if count > 0:
                    wanted.append((float(values[0]), work, bond, rows[:count]))
        best = max((gain for gain, *_ in wanted), default=0.0)
        grown: set[str] = set()
        for gain, work, bond, rows in sorted(wanted, key=lambda want: (-want[0], want[1].path)):
            if gain >= self.share * best and gain > 0 and work.path not in grown:
                grown.add(work.path)  # a second bond's directions have another shape by now
                _add_(work, bond, rows)

    def close_(self, works: Sequence[Adapted]) -> None:
        for work in works:
            if "hook" in work.passing:
                work.passing.pop("hook").remove()


def dense_structure(signature: Signature) -> Structure:
    """Return the structure of one core `W` that is the weight itself."""
    outputs = tuple((f"o{k}",) for k in range(len(signature.outputs)))
    inputs = tuple((f"i{k}",) for k in range(len(signature.inputs)))
    names = tuple(name for axis in (*outputs, *inputs) for name in axis)
    equation = Equation((Core("W", names),), inputs, outputs)
    return Structure.of(Network.of(equation, dict(zip(names, signature.shape))))


def two_core_gradient(
    network: Network, cores: dict[str, Tensor], bond: str, folded: Tensor
) -> tuple[Tensor, Tensor]:
    """Return singular values and right singular vectors of what both cores cannot reach.

    The gradient with respect to the product of the two cores of a bond, as `[rest of the first,
    rest of the second]`, minus its parts in the range of either.
    """
    equation = network.equation
    pair = [equation.core(name) for name in ends(network, bond)]
    rests = [tuple(n for n in core.indices if n != bond) for core in pair]
    legs = (*equation.output_indices, *equation.input_indices)
    parts: list[Named] = [(folded, legs)]
    parts += [(cores[c.name], c.indices) for c in equation.cores if c not in pair]
    matrix = einsum(parts, rests[0] + rests[1])
    matrix = matrix.reshape(prod(network.size[n] for n in rests[0]), -1)
    left, right = (
        torch.linalg.qr(unfold(cores[core.name], core.indices.index(bond)).T).Q for core in pair
    )
    matrix = matrix - left @ (left.T @ matrix)
    matrix = matrix - (matrix @ right) @ right.T
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    return values, rows


def _room(work: Adapted, bond: str) -> int:
    """Return by how much a bond can grow before one of its cores has no new direction."""
    shapes, rank = work.layer.structure.shapes, work.ranks[bond]
    return min(prod(shapes[name]) // rank for name in ends(work.network, bond)) - rank


def _add_(work: Adapted, bond: str, rows: Tensor) -> None:
    first, second = ends(work.network, bond)
    values = work.values
    sizes = {}
    for name in (first, second):
        axis = work.axis(name, bond)
        sizes[name] = [n for k, n in enumerate(values[name].shape) if k != axis]
    scale = unfold(values[second], work.axis(second, bond)).norm(dim=1).mean()
    work.grow_(
        bond,
        {
            first: values[first].new_zeros(len(rows), *sizes[first]),
            second: (scale * rows).reshape(len(rows), *sizes[second]),
        },
    )
