"""Learned supports: rank-one blocks whose places and sizes are found by gradients (Gaudi-GBLR)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tnc.fit.als import polish
from tnc.fit.kept import weighed
from tnc.fit.method import Fit, Outcome, fits
from tnc.fit.metric import Metric
from tnc.fit.pair import split
from tnc.fit.projection import project
from tnc.fit.windows import (
    best_starts,
    boxes,
    shortest,
    smooth_masks,
    thresholded,
    whole_lengths,
)
from tnc.net import Network, Structure

STEPS, RATE, LARGEST_SHARE, SWEEPS = 80, 0.02, 0.99, 8


@dataclass(frozen=True)
class Sides:
    """The two sparse cores of a network: the one of all outputs and the one of all inputs."""

    left: str
    right: str
    rank: int


class Gaudi(Fit):
    """`min ||W - (M * B)(M' * A)||` over cores and the intervals of the masks M and M'.

    From the truncated SVD, whose vectors tell where blocks lie; then Adam on cores, widths and
    places through smooth masks that get sharper, widths soft-thresholded down to the budget; then
    boxes of whole lengths, and alternating least squares on them in the metric. Starts without
    any gradient step are kept where they are better.
    """

    name = "gaudi"
    aware = "both"
    order = 1

    def accepts(self, structure: Structure) -> str:
        if len(structure.terms) != 1:
            return f"it is a sum of {len(structure.terms)} terms"
        found = sides_of(structure.terms[0])
        return found if isinstance(found, str) else "it is padded" if structure.padded else ""

    def honours(self, structure: Structure, metric: Metric) -> bool:
        return True

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        (term,) = structure.terms
        sides = sides_of(term)
        assert not isinstance(sides, str)  # accepted
        matrix = weight.reshape(prod(structure.signature.outputs), -1)
        b, a = _start(matrix, sides.rank, metric)
        counts = [term.stored(term.equation.core(n)) for n in (sides.left, sides.right)]
        if counts == [b.numel(), a.numel()]:
            return Outcome(_folded(term, sides, b, a))
        runs = [_windowed(b, a, counts), _learned(matrix, b, a, counts, metric)]
        begun = [_folded(term, sides, *run) for run in runs]
        if not metric.plain:  # blocks show in the singular vectors of the plain weight
            begun.append(self.outcome(weight, structure, Metric(), seed).cores)
        ends = [polish(weight, structure, cores, metric, SWEEPS) for cores in begun]
        errors = [_error(weight, structure, end, metric) for end in ends]
        best = errors.index(min(errors))
        note = "supports from " + ("the SVD", "gradients", "the plain norm")[best]
        return Outcome(ends[best].cores, ends[best].iterations, ends[best].converged, note)


def sides_of(network: Network) -> Sides | str:
    """Return the two sparse cores of a low-rank network, or say why it is none."""
    equation = network.equation
    if len(equation.cores) != 2 or not all(core.stored for core in equation.cores):
        return "it is not two sparse cores"
    if any(core.kind != "trainable" for core in equation.cores):
        return "a core is held"
    if len(equation.bonds) != 1 or equation.shared:
        return "it has not one bond between its cores"
    outputs, inputs = set(equation.output_indices), set(equation.input_indices)
    names = {}
    for core in equation.cores:
        own = set(core.indices) - set(equation.bonds)
        names["left" if own == outputs else "right" if own == inputs else ""] = core.name
    if set(names) != {"left", "right"}:
        return "its cores do not part outputs from inputs"
    return Sides(names["left"], names["right"], network.size[equation.bonds[0]])


def _start(matrix: Tensor, rank: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """Return the best `[o, r]` and `[r, i]` without supports, equally large."""
    if metric.plain:
        return split(matrix, rank)
    left, right, _ = project(matrix, metric)
    left, right = left[:, :rank], right[:rank]
    sizes = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-300)).sqrt()
    left, right = left * sizes, right / sizes.clamp_min(1e-300)[:, None]
    missing = rank - left.shape[1]
    pad = torch.nn.functional.pad
    return (pad(left, (0, missing)), pad(right, (0, 0, 0, missing))) if missing else (left, right)


def _windowed(b: Tensor, a: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Return factors cut to the intervals that hold most of them."""
    return b * _boxed(b.T, counts[0]).T, a * _boxed(a, counts[1])


def _boxed(rows: Tensor, count: int) -> Tensor:
    """Return boxes `[r, size]` of `count` places in all where rows have most of their energy."""
    energy, size = rows.square(), rows.shape[1]
    widths = shortest(energy, LARGEST_SHARE).double() * (energy.sum(1) > 0)
    lengths = whole_lengths(widths, size, count)
    return boxes(lengths, best_starts(energy, lengths), size).to(rows.dtype)


def _learned(
    matrix: Tensor, b: Tensor, a: Tensor, counts: list[int], metric: Metric
) -> tuple[Tensor, Tensor]:
    """Return masked factors after the gradient fit."""
    scale = float((matrix * weighed(matrix, metric)).sum()) or 1.0
    factors = [b.T.clone().requires_grad_(), a.clone().requires_grad_()]
    sizes = [factor.shape[1] for factor in factors]
    lengths = [shortest(factor.detach().square(), 0.999) for factor in factors]
    starts = [
        (best_starts(f.detach().square(), n).double() / size).requires_grad_()
        for f, n, size in zip(factors, lengths, sizes)
    ]
    widths = [(n.double() / s).clamp_max(0.999).requires_grad_() for n, s in zip(lengths, sizes)]
    begun = [float(w.detach().sum()) for w in widths]
    typical = float(b.square().mean().sqrt()) or 1.0
    adam = torch.optim.Adam(
        [
            {"params": factors, "lr": RATE * typical},
            {"params": [*starts, *widths], "lr": RATE / 4},
        ]
    )
    for step in range(STEPS):
        done = step / STEPS
        masks = [
            smooth_masks(w, start, size, size * (0.05 + done))
            for w, start, size in zip(widths, starts, sizes)
        ]
        rest = matrix - (masks[0] * factors[0]).T @ (masks[1] * factors[1])
        loss = (rest * weighed(rest, metric)).sum() / scale
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            for w, size, count, first in zip(widths, sizes, counts, begun):
                goal = count / size
                allowed = goal + max(0.0, first - goal) * max(0.0, 1 - 1.5 * done)
                w.copy_(thresholded(w.clamp(1 / size, 0.999), allowed, 1 / size))
    found = []
    for factor, w, start, size, count in zip(factors, widths, starts, sizes, counts):
        whole = whole_lengths(w.detach(), size, count)
        places = (start.detach() * size).round().long() % size
        found.append(factor.detach() * boxes(whole, places, size))
    return found[0].T, found[1]


def _folded(term: Network, sides: Sides, b: Tensor, a: Tensor) -> dict[str, Tensor]:
    equation, found = term.equation, {}
    (bond,) = equation.bonds
    for name, axes, tensor in (
        (sides.left, (*equation.output_indices, bond), b),
        (sides.right, (bond, *equation.input_indices), a),
    ):
        whole = tensor.reshape([term.size[n] for n in axes])
        order = [axes.index(n) for n in equation.core(name).indices]
        found[name] = whole.permute(order).contiguous()
    return found


def _error(weight: Tensor, structure: Structure, found: Outcome, metric: Metric) -> float:
    from tnc.fit.folding import reconstruct

    return metric.norm(weight - reconstruct(structure, found.cores), structure.signature)


fits.register(Gaudi.name)(Gaudi())
