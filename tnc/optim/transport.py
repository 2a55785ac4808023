"""Move what an optimizer knows of a weight to the cores of a structure, and back.

With `W = sum of terms`, linear in each core by `J`: a covector (a gradient, a momentum) is pulled
by `J^T`, exactly; a second moment by `(J * J)^T`, exact where entries of the gradient are
uncorrelated, and never above `(|J|^T sqrt(v))^2`. The contractions come from `tnc.derive`, run in
the order of fewest FLOPs, and every result is contiguous: a fused optimizer reads state by address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, reduce
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from tnc.derive.adjoint import WEIGHT, adjoint
from tnc.derive.contraction import Contraction
from tnc.derive.dense import dense
from tnc.derive.transport import INPUTS, OUTPUTS, SECOND, exact_from, quadratic, spread, squared
from tnc.kernels.einsums import lower
from tnc.net import Network, Structure
from tnc.optim.conjugate import smallest_solution

IDENTITY = "identity:"
Form = Callable[[Tensor], Tensor]


def _same(core: Tensor) -> Tensor:
    return core


class Transport:
    """The maps between a weight and the cores of its structure, at the cores' present values.

    Weights are of the shape `structure.signature.shape`, outputs first; cores are whole (sparse
    ones as dense tensors). Maps act on what belongs to the weight, such as its momentum. Where the
    weight is `scale` times the structure, with one number or one for each row, so is J.

    >>> from tnc.net import Structure, parse_network
    >>> s = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1"))
    >>> moves = Transport(s, {"B": torch.ones(2, 1), "A": torch.ones(1, 3)})
    >>> moves.pull(torch.ones(2, 3))["B"]
    tensor([[3.],
            [3.]])
    """

    def __init__(
        self,
        structure: Structure,
        cores: Mapping[str, Tensor],
        scale: float | Tensor = 1.0,
    ) -> None:
        self.structure = structure
        self._scale = scale.detach() if isinstance(scale, Tensor) else scale
        self.cores = {name: core.detach() for name, core in cores.items()}
        self._terms = {core.name: term for term in structure.terms for core in term.equation.cores}

    @cached_property
    def trainable(self) -> tuple[str, ...]:
        """The cores that a gradient reaches, in order."""
        return tuple(name for name, kind in self.structure.kinds.items() if kind == "trainable")

    def pull(self, covector: Tensor) -> dict[str, Tensor]:
        """Return `J^T X` for every trainable core: what its gradient is when the weight's is X."""
        return {
            name: self._run(
                adjoint(self._terms[name], name), name, torch.conj, self._scaled(covector)
            )
            for name in self.trainable
        }

    def pull_squared(self, diagonal: Tensor) -> dict[str, Tensor]:
        """Return `(J * J)^T v` for every trainable core; real and not negative, as v is."""
        return {
            name: self._run(
                squared(self._terms[name], name), name, _same, self._scaled(diagonal, 2)
            )
            for name in self.trainable
        }

    def pull_absolute(self, sizes: Tensor) -> dict[str, Tensor]:
        """Return `|J|^T s` or more: its square bounds the second moment where s is `sqrt(v)`."""
        return {
            name: self._run(
                adjoint(self._terms[name], name), name, torch.abs, self._scaled(sizes).abs()
            )
            for name in self.trainable
        }

    def push(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return `sum of J D`: how the weight changes, to first order, when cores change by D."""
        found = self._sum(
            self._unfold(dense(self._terms[name]), name, _same, change)
            for name, change in changes.items()
        )
        return self._scaled(found)

    def spread(self, diagonals: Mapping[str, Tensor]) -> Tensor:
        """Return `sum of (J * J) u`, the transpose of `pull_squared`."""
        found = self._sum(
            self._unfold(spread(self._terms[name], name), name, _same, u)
            for name, u in diagonals.items()
        )
        return self._scaled(found, 2)

    def lift(self, covectors: Mapping[str, Tensor], steps: int = 200) -> Tensor:
        """Return the smallest weight-shaped X with `J^T X` nearest to the given covectors.

        It is the tangent part of the momentum that the weight would have had; what lies outside of
        the tangent space the cores never saw. Where the covectors are pulled from one weight,
        pulling X gives them again; momenta of cores that moved meanwhile are met in least squares.
        """
        names = [name for name in self.trainable if name in covectors]

        def forward(weight: Tensor) -> dict[str, Tensor]:
            pulled = self.pull(weight)
            return {name: pulled[name] for name in names}

        given = {name: covectors[name] for name in names}
        return smallest_solution(forward, self.push, given, steps)

    def lift_squared(self, diagonals: Mapping[str, Tensor], steps: int = 30) -> Tensor:
        """Return a second moment of the weight whose `pull_squared` comes near the given ones.

        Not unique: the multiplicative updates of Richardson and Lucy, from a constant, which keep
        it positive and smooth.
        """
        weights = self.spread({name: torch.ones_like(u) for name, u in diagonals.items()})
        total = sum(float(u.sum()) for u in diagonals.values())
        found = torch.full_like(weights, total / max(float(weights.sum()), 1e-300))
        tiny = torch.finfo(weights.dtype).tiny
        for _ in range(steps):
            pulled = self.pull_squared(found)
            ratios = {name: u / pulled[name].clamp_min(tiny) for name, u in diagonals.items()}
            found = found * self.spread(ratios) / weights.clamp_min(tiny)
        return found

    def kronecker(self, outputs: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """Return the cores' second moments where the weight's gradient has covariance `L x R`.

        `outputs` and `inputs` are `E[G G^T]` and `E[G^T G]` of the weight as a matrix: the model is
        `E[g g^T] = L x R / tr L`.
        """
        return {name: self._quadratic(name, "", outputs, inputs) for name in self.trainable}

    def gram(
        self, core: str, mode: str | tuple[str, ...], outputs: Tensor, inputs: Tensor
    ) -> Tensor:
        """Return `E[G_(mode) G_(mode)^T]` of a core's gradient, from the weight's statistics.

        `mode` is a leg of the core, or several that are read as one. Exact where `exact` says so;
        elsewhere it is the Kronecker model's estimate.
        """
        found = self._quadratic(core, mode, outputs, inputs)
        rows = prod(found.shape[: found.dim() // 2])
        return found.reshape(rows, rows)

    def exact(self, core: str, mode: str | tuple[str, ...]) -> str:
        """Return the side of the weight from which alone `gram` is exact, or ''."""
        modes = (mode,) if isinstance(mode, str) else mode
        side = exact_from(self._terms[core], core, modes)
        return "" if side == "inputs" and isinstance(self._scale, Tensor) else side

    def legs(self, core: str) -> tuple[str, ...]:
        """Return the legs of a core, one an axis."""
        return self._terms[core].equation.core(core).indices

    def _scaled(self, weight: Tensor, power: int = 1) -> Tensor:
        """Return a weight with its rows times the scale to a power."""
        if not isinstance(self._scale, Tensor):
            return weight if self._scale == 1.0 else weight * self._scale**power
        rows = self._scale.to(weight).reshape(-1, *[1] * (weight.dim() - 1))
        return weight * rows**power

    def _sum(self, parts: Iterable[Tensor]) -> Tensor:
        return reduce(torch.add, parts)

    def _unfold(self, contraction: Contraction, name: str, form: Form, given: Tensor) -> Tensor:
        """Run a contraction whose result is a weight, and crop its padding."""
        term = self._terms[name]
        found = self._contract(contraction, form, {WEIGHT: given, name: given})
        found = found.reshape(term.signature.shape)
        for axis, size in enumerate(self.structure.signature.shape):
            found = found.narrow(axis, 0, size)
        return found

    def _run(self, contraction: Contraction, name: str, form: Form, weight: Tensor) -> Tensor:
        given = self._legs(self._terms[name], weight)
        return self._contract(contraction, form, {WEIGHT: given}).contiguous()

    def _contract(
        self,
        contraction: Contraction,
        form: Form,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        like = next(iter(given.values()))
        values = []
        for name, legs in zip(contraction.names, contraction.operands):
            plain = name.removeprefix(SECOND)
            if name in given:
                values.append(given[name])
            elif plain.startswith(IDENTITY):
                size = contraction.size[legs[0]]
                values.append(torch.eye(size, dtype=like.dtype, device=like.device))
            else:
                core = self.cores[plain]
                core = core.conj() if plain != name else form(core)
                kept = core if core.is_complex() else core.to(like.dtype)
                values.append(kept)
        if any(value.is_complex() for value in values):
            wide = next(value.dtype for value in values if value.is_complex())
            values = [value.to(wide) for value in values]
        found = lower(contraction).run(values)
        if found.is_complex() and SECOND in "".join(contraction.names):
            found = found.real
        return found

    def _legs(self, term: Network, weight: Tensor) -> Tensor:
        """Pad a weight to what a network covers, and split its axes into legs."""
        pads: list[int] = []
        for covered, size in zip(reversed(term.signature.shape), reversed(weight.shape)):
            pads += [0, covered - size]
        if any(pads):
            weight = functional.pad(weight, pads)
        equation = term.equation
        legs = (*equation.output_indices, *equation.input_indices)
        return weight.reshape([term.size[name] for name in legs])

    def _quadratic(
        self, core: str, mode: str | tuple[str, ...], outputs: Tensor, inputs: Tensor
    ) -> Tensor:
        term = self._terms[core]
        found = quadratic(term, core, mode)
        sides = term.equation.outputs, term.equation.inputs
        signature = self.structure.signature
        scaled = self._scaled(self._scaled(outputs).t()).t()
        left = self._statistic(term, sides[0], signature.outputs, scaled, found.outputs)
        right = self._statistic(term, sides[1], signature.inputs, inputs, found.inputs)
        given = {OUTPUTS: left, INPUTS: right}
        result = self._contract(found.contraction, _same, given)
        return (result / outputs.diagonal().sum()).contiguous()

    def _statistic(
        self,
        term: Network,
        axes: tuple[tuple[str, ...], ...],
        sizes: tuple[int, ...],
        gram: Tensor,
        fresh: tuple[bool, ...],
    ) -> Tensor:
        """Split a Gram matrix into legs and their copies; take diagonals over tied legs."""
        found = gram.reshape(*sizes, *sizes)
        covers = [term.extent(axis) for axis in axes]
        pads: list[int] = []
        for covered, size in zip(reversed([*covers, *covers]), reversed([*sizes, *sizes])):
            pads += [0, covered - size]
        found = functional.pad(found, pads) if any(pads) else found
        legs = [term.size[name] for axis in axes for name in axis]
        found = found.reshape(*legs, *legs)
        count = len(legs)
        letters = [chr(ord("a") + place) for place in range(2 * count)]
        second = [letters[count + k] if two else letters[k] for k, two in enumerate(fresh)]
        kept = [letters[count + k] for k, two in enumerate(fresh) if two]
        spec = "".join([*letters[:count], *second]) + "->" + "".join([*letters[:count], *kept])
        return torch.einsum(spec, found)
