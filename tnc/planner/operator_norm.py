"""Operator-norm errors of the structures that a target could become, relative to the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, prod, sqrt

import numpy as np
import torch
from torch import Tensor

from tnc.decide.candidates import Candidate, cost_of, ladder, members_of, name_of, template_of
from tnc.decide.target import Target
from tnc.derive.cost import parameters
from tnc.derive.cut import cut
from tnc.fit import Metric, spectrum, widest
from tnc.fit.folding import fold, legs_of
from tnc.net import Axis, Network
from tnc.planner.options import Option, dense_of
from tnc.rewrite.fitting import fit_sites, weight_of
from tnc.rewrite.subject import Subject
from tnc.structures import Family

FINEST = 256
"""Ranks that are looked at for one family: all of them up to here, evenly spaced ones beyond."""

PROBED = 4
"""Sizes of a ladder that are fitted where no spectrum tells the error."""

SWEEPS = 2
"""How long these are fitted: their norms are interpolated."""

Pair = tuple[Option, float]


@dataclass(frozen=True)
class Size:
    """A rank of a family with the parameters and the error that it has, before it is built."""

    family: Family
    ranks: tuple[tuple[str, int], ...]
    params: int
    error: float

    def option(self, target: Target) -> Option:
        """Build the structure; its error in the plan's unit stays NaN."""
        structure = template_of(self.family, target).at(dict(self.ranks))
        fit = self.family.fit if target.rule.fit == "auto" else target.rule.fit
        cost, name = cost_of(structure, target), name_of(self.family)
        return Option(
            Candidate(structure, name, fit, cost, float("nan"), False), float("nan"), float("nan")
        )


def relative_norms(
    subject: Subject, target: Target, round_to: int, seed: int, storage: bool = False
) -> tuple[Pair, ...]:
    """Return options with `||W - W'|| / ||W||` in the operator norm, staying dense first.

    The norm is of the weight as the matrix of outputs by inputs, or by the sides of the structure.
    For two cores with k blocks it is the bound `sqrt(k) max_i s_i[r + 1] / s[1]`, attained at k = 1
    (Liebenwein et al., Compressing Neural Networks: Towards Determining the Optimal Layer-wise
    Decomposition, 2021, theorem 1). Other structures are fitted at a few sizes, the logarithm of
    the true norm interpolated over that of the size. An option's own error stays NaN. Structures
    with as many parameters as the dense weight are left out, and where `storage` is all that counts
    also those that are larger than another and no better.
    """
    weight = widest(weight_of(subject.model, target.group).detach())
    dense = dense_of(target).params
    sizes: list[Size] = []
    fitted: list[Pair] = []
    norms: Norms = {}
    for family in members_of(target):
        known = _bounds(weight, target, family, norms)
        if known is not None:
            sizes += _by_rank(target, family, known)
        else:
            fitted += _by_fits(subject, target, family, weight, round_to, seed)
    sizes = [size for size in sizes if size.params < dense]
    kept = _front(sizes) if storage else sizes
    fitted = [(option, error) for option, error in fitted if option.cost(target).params < dense]
    pairs = [*((size.option(target), size.error) for size in kept), *fitted]
    return ((Option(None, 0.0, 0.0), 0.0), *((option, _six(error)) for option, error in pairs))


def _front(sizes: list[Size]) -> list[Size]:
    """Return the sizes that no other beats in parameters and error, smallest first."""
    found: list[Size] = []
    for size in sorted(sizes, key=lambda size: (size.params, _six(size.error))):
        if not found or _six(size.error) < _six(found[-1].error):
            found.append(size)
    return found


Norms = dict[tuple[type[Family], tuple[tuple[str, int], ...]], float]


def _bounds(weight: Tensor, target: Target, family: Family, norms: Norms) -> list[float] | None:
    """Return the relative error by rank, from rank 0, where one spectrum of blocks tells it.

    `norms` keeps what was found: the groups of a family part the same matrix.
    """
    template = template_of(family, target)
    if template.parts or len(template.bounds) != 1 or len(template.equation.cores) != 2:
        return None
    ((bond, _),) = template.bounds
    parted = cut(template.equation, bond)
    equation = template.equation
    both = set(equation.output_indices) & set(equation.input_indices)
    if parted is None or both & set(parted.batch):
        return None
    network = template.at({bond: 1}).terms[0]
    values = spectrum(weight, network, bond, None, target.signature)
    blocks = values if values.ndim == 2 else values[None]
    count = prod(network.size[name] for name in parted.batch)
    whole = float(blocks[0, 0])
    if count > 1:
        rows = (*parted.left, *(n for n in parted.batch if n in equation.output_indices))
        key = (type(family), tuple((name, network.size[name]) for name in rows))
        if key not in norms:
            norms[key] = _unfolded_norm(weight, network, rows)
        whole = norms[key]
    scale = sqrt(count) / (whole or 1.0)
    return [float(value) * scale for value in blocks.amax(dim=0)] + [0.0]


def _unfolded_norm(weight: Tensor, network: Network, rows: Axis) -> float:
    """Return the norm of the weight as a matrix of some of its legs by all others."""
    folded, legs = fold(weight, network), legs_of(network)
    chosen = [place for place, name in enumerate(legs) if name in rows]
    others = [place for place, name in enumerate(legs) if name not in rows]
    matrix = folded.permute(*chosen, *others).reshape(prod(folded.shape[p] for p in chosen), -1)
    return float(torch.linalg.matrix_norm(matrix, 2))


def _by_rank(target: Target, family: Family, errors: list[float]) -> Iterator[Size]:
    """Yield ranks with errors; both cores have the bond once, so parameters are linear in it."""
    template = template_of(family, target)
    ((bond, top),) = template.bounds
    each = parameters(template.at({bond: 1}))
    count = min(top, FINEST)
    for rank in sorted({round(1 + (top - 1) * k / max(1, count - 1)) for k in range(count)}):
        error = errors[min(rank, len(errors) - 1)]
        yield Size(family, ((bond, rank),), each * rank, error)


def _by_fits(
    subject: Subject, target: Target, family: Family, weight: Tensor, round_to: int, seed: int
) -> Iterator[Pair]:
    whole = _norm(weight, target)
    rungs = ladder(family, target, {}, round_to)
    for group in dict.fromkeys(rung.group for rung in rungs):
        own = [rung for rung in rungs if rung.group == group]
        places = sorted({round(k * (len(own) - 1) / (PROBED - 1)) for k in range(PROBED)})
        sizes, norms = [], []
        for place in places:
            rung = own[place]
            fitted = fit_sites(
                subject.model,
                target.group,
                rung.structure,
                rung.fit,
                Metric(),
                None,
                seed,
                sweeps=SWEEPS,
            )
            error = _norm(weight - widest(fitted.dense), target) / (whole or 1.0)
            sizes.append(log(rung.cost.params))
            norms.append(log(max(error, 1e-12)))
        for rung in own:
            value = exp(float(np.interp(log(rung.cost.params), sizes, norms)))
            yield Option(_estimated(rung), float("nan"), float("nan")), value


def _estimated(rung: Candidate) -> Candidate:
    return Candidate(
        rung.structure, rung.family, rung.fit, rung.cost, float("nan"), False, rung.group
    )


def _norm(weight: Tensor, target: Target) -> float:
    rows = prod(target.signature.outputs)
    return float(torch.linalg.matrix_norm(weight.reshape(rows, -1), 2))


def _six(value: float) -> float:
    return float(f"{value:.6g}")
