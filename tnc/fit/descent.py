"""The loop of alternating least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.derive import adjoint, dense
from tnc.derive.adjoint import WEIGHT
from tnc.fit.conjugate import conjugate_gradients
from tnc.fit.folding import crop, fold
from tnc.fit.inverse import Inverse, Memo
from tnc.fit.kept import strongest
from tnc.fit.marginal import fold_moments
from tnc.fit.method import Outcome
from tnc.fit.metric import RIDGE, Metric
from tnc.fit.named_einsum import contract
from tnc.fit.normal import gram
from tnc.net import Network, Structure

EXACT = 1e-13
_LARGE = 1 << 16


@dataclass(frozen=True)
class Settings:
    """When to stop: sweeps at most, relative change of the error over a sweep.

    An error of `EXACT` of the weight, or of what a metric's ridge can tell, ends it too. `steps`
    bounds the conjugate gradients of cores whose normal matrix is too large to factorise.
    """

    sweeps: int = 100
    tolerance: float = 1e-6
    steps: int = 8


class Descent:
    """Alternating least squares in the form of corrections.

    Each core moves by `H^-1 J^T (G E C)`, with E the residual of the whole sum. Padding has no
    residual, so that it is free, and rounding errors correct themselves. A step that does not
    lower the error is taken back. Sparse cores keep the positions that they start with.
    """

    def __init__(
        self,
        weight: Tensor,
        structure: Structure,
        cores: Mapping[str, Tensor],
        metric: Metric,
        settings: Settings,
        held: frozenset[str] = frozenset(),
    ) -> None:
        self.structure, self.metric, self.settings = structure, metric, settings
        self.weight = weight
        self.cores = {name: cores[name] for name in structure.shapes}
        self.masks = {
            name: strongest(cores[name].abs(), count) for name, count in structure.stored.items()
        }
        for name, mask in self.masks.items():
            self.cores[name] = torch.where(mask, cores[name], torch.zeros_like(cores[name]))
        self.free = [
            (place, core.name)
            for place, term in enumerate(structure.terms)
            for core in term.equation.cores
            if core.name not in held and core.kind != "constant"
        ]
        self.moments = [fold_moments(metric, t, structure.signature) for t in structure.terms]
        self.parts = [self._part(term, self.cores) for term in structure.terms]
        self.memos: list[tuple[Memo, Memo]] = [({}, {}) for _ in structure.terms]
        self.weighted, self.error = self._judge(self.parts)

    def run(self) -> Outcome:
        """Sweep over the cores until the error settles."""
        floor = EXACT if self.metric.plain else math.sqrt(RIDGE)
        exact = floor * (self._norm(self.weight) or 1.0)
        sweeps, converged = 0, self.error <= exact or not self.free
        while not converged and sweeps < self.settings.sweeps:
            before = self.error
            for place, name in self.free if sweeps % 2 == 0 else reversed(self.free):
                self._update(place, name)
            sweeps += 1
            settled = before - self.error <= self.settings.tolerance * before
            converged = settled or self.error <= exact
        return Outcome(self.cores, sweeps, converged)

    def _update(self, place: int, name: str) -> None:
        term = self.structure.terms[place]
        pulled = contract(
            adjoint(term, name),
            {**self.cores, WEIGHT: fold(self.weighted, term)},
        )
        change = self._solve(place, name, pulled)
        cores = {**self.cores, name: self.cores[name] + change}
        parts = [*self.parts]
        parts[place] = self._part(term, cores)
        weighted, error = self._judge(parts)
        if error < self.error:
            self.cores, self.parts = cores, parts
            self.weighted, self.error = weighted, error

    def _solve(self, place: int, name: str, pulled: Tensor) -> Tensor:
        term, moments = self.structure.terms[place], self.moments[place]
        if name in self.masks:
            mask = self.masks[name].to(pulled.dtype)
            return conjugate_gradients(
                lambda change: mask * self._normal_product(place, name, change),
                mask * pulled,
                None,
                self.settings.steps,
            )
        normal = gram(term, self.cores, name, moments)
        if normal.direct and normal.flops <= self._iterating_flops(term, name):
            return Inverse(normal, self.memos[place][0])(pulled)
        rough = gram(term, self.cores, name, moments, product=True)
        return conjugate_gradients(
            lambda change: self._normal_product(place, name, change),
            pulled,
            Inverse(rough, self.memos[place][1]) if rough.direct else None,
            self.settings.steps,
        )

    def _iterating_flops(self, term: Network, name: str) -> float:
        whole = term.signature.parameters
        metric = sum(2.0 * whole * math.sqrt(m.tensor.numel()) for m in self.moments[0] if m.full)
        once = dense(term).order.flops + adjoint(term, name).order.flops + metric
        return 4.0 * self.settings.steps * once + 1e9

    def _normal_product(self, place: int, name: str, change: Tensor) -> Tensor:
        """Return J^T (G J(change) C); large moments multiply in float32, steps are judged in 64."""
        term = self.structure.terms[place]
        moved = contract(dense(term), {**self.cores, name: change})
        if self.moments[place]:
            moved = fold(
                self._apply_metric(crop(moved, term, self.structure.signature), quick=True), term
            )
        return contract(adjoint(term, name), {**self.cores, WEIGHT: moved})

    def _apply_metric(self, tensor: Tensor, quick: bool = False) -> Tensor:
        """Return G E C."""
        matrix = tensor.reshape(_matrix_shape(self.structure))
        ingoing, outgoing = self.metric.moment("inputs"), self.metric.moment("outputs")
        if ingoing is not None:
            moment = ingoing.ridged
            if quick and moment.numel() > _LARGE:
                matrix = (matrix.float() @ ingoing.single).double()
            else:
                matrix = matrix @ moment if moment.ndim == 2 else matrix * moment
        if outgoing is not None:
            moment = outgoing.ridged
            matrix = moment @ matrix if moment.ndim == 2 else moment[:, None] * matrix
        return matrix.reshape(tensor.shape)

    def _norm(self, tensor: Tensor) -> float:
        return math.sqrt(max(0.0, float((tensor * self._apply_metric(tensor)).sum())))

    def _part(self, term: Network, cores: Mapping[str, Tensor]) -> Tensor:
        return crop(contract(dense(term), cores), term, self.structure.signature)

    def _judge(self, parts: list[Tensor]) -> tuple[Tensor, float]:
        """Return G E C and the norm of the residual E that the terms leave."""
        rest = self.weight
        for part in parts:
            rest = rest - part
        weighted = self._apply_metric(rest)
        return weighted, math.sqrt(max(0.0, float((rest * weighted).sum())))


def _matrix_shape(structure: Structure) -> tuple[int, int]:
    signature = structure.signature
    rows = int(torch.Size(signature.outputs).numel())
    return rows, signature.parameters // rows
