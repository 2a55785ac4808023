"""Complex weights: alternating least squares with conjugated adjoints, in complex128."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from tnc.derive import adjoint, core_std, dense
from tnc.derive.adjoint import WEIGHT
from tnc.errors import FitError
from tnc.fit.folding import crop, fold, fold_side, reconstruct, side_legs
from tnc.fit.method import Outcome
from tnc.fit.metric import SIDES, Metric
from tnc.fit.named_einsum import Named, contract, einsum
from tnc.net import Network, Structure

SWEEPS, STEPS, SETTLED, POLISHED = 60, 30, 1e-9, 1e-4
RIDGE, LARGEST = 1e-13, 1024


def fit_complex(
    weight: Tensor,
    structure: Structure,
    metric: Metric,
    seed: int,
    begun: Outcome | None = None,
    sweeps: int = SWEEPS,
) -> Outcome:
    """Return complex cores by alternating least squares, from what is `begun` or a seeded start.

    `W = J(core)` is linear over the complex numbers, so each core solves `J^H M J x = J^H M W` by
    its normal equations, or by conjugate gradients where they do not part, where `J^H` is the
    adjoint with all other cores conjugated and `M E = G E C^T` weighs by the metric. Raises
    FitError for cores that are sparse or held.
    """
    reason = _refuses(structure)
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
    if begun is not None:
        cores = dict(begun.cores)

    def weigh(tensor: Tensor) -> Tensor:
        if metric.plain:
            return tensor
        matrix = tensor.reshape(prod(structure.signature.outputs), -1)
        return metric.weighed(matrix).reshape(tensor.shape)

    whole = metric.norm(weight, structure.signature) or 1.0
    error, done, converged = whole, 0, False
    settled = SETTLED if begun is None else POLISHED
    while done < sweeps and not converged:
        before = error
        for term in structure.terms:
            for core in term.equation.cores:
                rest = weight - reconstruct(structure, cores)
                change = _solved(term, core.name, cores, weigh(rest), structure, metric, weigh)
                cores[core.name] = cores[core.name] + change
        error = metric.norm(weight - reconstruct(structure, cores), structure.signature)
        done += 1
        converged = before - error <= settled * whole
    return Outcome(cores, done, converged, "complex alternating least squares")


def _refuses(structure: Structure) -> str:
    if structure.stored:
        return "sparse cores are real"
    held = [name for name, kind in structure.kinds.items() if kind != "trainable"]
    return f"core {held[0]} is held" if held else ""


def _solved(
    term: Network,
    name: str,
    cores: dict[str, Tensor],
    rest: Tensor,
    structure: Structure,
    metric: Metric,
    weigh: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the least-squares change of one core for a weighed residual."""
    others = {c.name: cores[c.name].conj() for c in term.equation.cores}

    def pull(tensor: Tensor) -> Tensor:
        return contract(adjoint(term, name), {**others, WEIGHT: fold(tensor, term)})

    def push(core: Tensor) -> Tensor:
        own = {c.name: cores[c.name] for c in term.equation.cores} | {name: core}
        return crop(contract(dense(term), own), term, structure.signature)

    left = pull(rest)
    direct = _directly(term, name, cores, left, structure, metric)
    if direct is not None:
        return direct
    found = torch.zeros_like(cores[name])
    direction, size = left, float(left.abs().square().sum())
    first = size
    for _ in range(STEPS):
        if size <= 1e-26 * first or size == 0:
            break
        moved = push(direction)
        weighed = weigh(moved)
        curvature = float((moved.conj() * weighed).sum().real)
        if curvature <= 0:
            break
        found = found + direction * (size / curvature)
        left = left - pull(weighed) * (size / curvature)
        before, size = size, float(left.abs().square().sum())
        direction = left + direction * (size / before)
    return found


def _directly(
    term: Network,
    name: str,
    cores: dict[str, Tensor],
    pulled: Tensor,
    structure: Structure,
    metric: Metric,
) -> Tensor | None:
    """Solve `J^H M J x = pulled` where it parts into a system for each value of the core's legs.

    None where it does not: shared legs, padding, metrics that are no diagonals, or large bonds.
    """
    equation = term.equation
    held = equation.core(name).indices
    others = [core for core in equation.cores if core.name != name]
    legs = {*equation.output_indices, *equation.input_indices}
    moments = [(side, metric.moment(side)) for side in SIDES]
    elsewhere = {n for core in others for n in core.indices}
    own = tuple(n for n in held if n not in elsewhere)
    bonds = tuple(n for n in held if n in elsewhere)
    size = prod(term.size[n] for n in bonds)
    if structure.padded or equation.shared or legs & set(bonds) or not others or size > LARGEST:
        return None
    if any(moment is not None and moment.given.ndim > 1 for _, moment in moments):
        return None
    parts: list[Named] = []
    for core in others:
        starred = tuple(n if n in legs else f"{n}*" for n in core.indices)
        parts += [(cores[core.name], core.indices), (cores[core.name].conj(), starred)]
    for side, moment in moments:
        if moment is not None:
            weights = fold_side(moment.given, term, structure.signature, side)
            parts.append((weights.to(pulled.dtype), side_legs(term, side)))
    batch = tuple(n for n in own if any(n in axes for _, axes in parts))
    gram = einsum(parts, (*batch, *(f"{n}*" for n in bonds), *bonds)).reshape(-1, size, size)
    level = gram.diagonal(dim1=1, dim2=2).real.mean()
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    first = (*batch, *(n for n in own if n not in batch))
    order = (*first, *bonds)
    right = pulled.permute([held.index(n) for n in order])
    shape = right.shape
    right = right.reshape(len(gram), -1, size).mT
    solved: Tensor = torch.linalg.solve(gram + (RIDGE * level + 1e-300) * eye, right).mT.reshape(
        shape
    )
    return solved.permute([order.index(n) for n in held])
