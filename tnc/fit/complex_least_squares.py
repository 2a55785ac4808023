"""Complex weights: alternating least squares with conjugated adjoints, in complex128."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.derive import adjoint, core_std, dense
from tnc.derive.adjoint import WEIGHT
from tnc.errors import FitError
from tnc.fit.folding import crop, fold, reconstruct
from tnc.fit.method import Outcome
from tnc.fit.metric import Metric
from tnc.fit.named_einsum import contract
from tnc.net import Network, Structure

SWEEPS, STEPS, SETTLED = 60, 30, 1e-9


def fit_complex(weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
    """Return complex cores by alternating least squares in the plain norm, from a seeded start.

    `W = J(core)` is linear over the complex numbers, so each core solves `J^H J x = J^H W` by
    conjugate gradients, where `J^H` is the adjoint with all other cores conjugated. Raises
    FitError for a metric, or for cores that are sparse or held.
    """
    reason = _refuses(structure, metric)
    if reason:
        raise FitError(
            f"a complex weight cannot be fitted so: {reason}", where=f"structure {structure}"
        )
    generator = torch.Generator().manual_seed(seed)
    std = core_std(structure, float(weight.abs().square().mean().sqrt()) or 1.0)
    cores = {
        name: torch.randn(shape, generator=generator, dtype=torch.complex128) * std[name]
        for name, shape in structure.shapes.items()
    }
    whole = float(weight.norm()) or 1.0
    error, sweeps, converged = whole, 0, False
    while sweeps < SWEEPS and not converged:
        before = error
        for term in structure.terms:
            for core in term.equation.cores:
                rest = weight - reconstruct(structure, cores)
                change = _solved(term, core.name, cores, rest, structure)
                cores[core.name] = cores[core.name] + change
        error = float((weight - reconstruct(structure, cores)).norm())
        sweeps += 1
        converged = before - error <= SETTLED * whole
    return Outcome(cores, sweeps, converged, "complex alternating least squares")


def _refuses(structure: Structure, metric: Metric) -> str:
    if not metric.plain:
        return "metrics are of real weights"
    if structure.stored:
        return "sparse cores are real"
    held = [name for name, kind in structure.kinds.items() if kind != "trainable"]
    return f"core {held[0]} is held" if held else ""


def _solved(
    term: Network, name: str, cores: dict[str, Tensor], rest: Tensor, structure: Structure
) -> Tensor:
    """Return the least-squares change of one core for a residual."""
    others = {c.name: cores[c.name].conj() for c in term.equation.cores}

    def pull(tensor: Tensor) -> Tensor:
        return contract(adjoint(term, name), {**others, WEIGHT: fold(tensor, term)})

    def push(core: Tensor) -> Tensor:
        own = {c.name: cores[c.name] for c in term.equation.cores} | {name: core}
        return crop(contract(dense(term), own), term, structure.signature)

    found = torch.zeros_like(cores[name])
    left = pull(rest)
    direction, size = left, float(left.abs().square().sum())
    first = size
    for _ in range(STEPS):
        if size <= 1e-26 * first or size == 0:
            break
        moved = push(direction)
        curvature = float(moved.abs().square().sum())
        if curvature <= 0:
            break
        found = found + direction * (size / curvature)
        left = left - pull(moved) * (size / curvature)
        before, size = size, float(left.abs().square().sum())
        direction = left + direction * (size / before)
    return found
