"""Candidates: the structures that a target could become, before their errors are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from tnc.decide.options import print_option
from tnc.decide.packing import pack_exact, shortlist
from tnc.decide.packing.problem import Packing
from tnc.decide.ranks import Tails, climb
from tnc.decide.target import Target
from tnc.derive.cost import Cost, cost, parameters
from tnc.derive.dense import dense as dense_weight
from tnc.errors import InfeasibleBudget, PlanError
from tnc.net import Structure
from tnc.structures import Family, Template, families

STEPS = 24
"""Sizes on the ladder of one family, evenly spaced up to the dense size."""


MOST = (0.75, 0.9)
"""Shares of the parameters that the largest term of a sum may have."""

WORTHWHILE = 0.85
"""A structure that keeps a larger share of the parameters costs more time than it saves."""


@dataclass(frozen=True)
class Candidate:
    """A structure for a target; `surrogate` bounds its squared error, NaN where unknown."""

    structure: Structure
    family: str
    fit: str
    cost: Cost
    surrogate: float
    exact: bool
    group: str = ""
    """Candidates of one group differ in size only: errors are interpolated within it."""


def template_of(family: Family, target: Target) -> Template:
    """Return the family's template for a target. Raises PlanError where the family refuses."""
    reason = family.refuses(target.signature)
    if reason:
        raise PlanError(
            f"{name_of(family)} does not fit {target.name} ({target.signature}): {reason}",
            where=target.where,
            hint="match this site with another structure, or with `structure: dense`",
        )
    return family.template(target.signature)


def members_of(target: Target) -> tuple[Family, ...]:
    """Return the families of a target's rule, those with open options as all their variants.

    Raises PlanError where a family refuses.
    """
    found: dict[Family, None] = {}
    for family in target.rule.structure:
        template_of(family, target)
        found.update(dict.fromkeys(family.variants(target.signature)))
    return tuple(found)


def name_of(family: Family) -> str:
    """Return the text form of a family with its options."""
    return print_option(families, family)


def cost_of(structure: Structure, target: Target) -> Cost:
    """Return what a structure costs in the place of a target."""
    first = target.sites[0]
    if target.group.stacked:
        each = [cost(own, site.work) for site, own, _ in target.group.members(structure)]
        params = parameters(structure)
        flops, peak = sum(part.flops for part in each), max(part.peak for part in each)
        return Cost(params, flops, params * first.itemsize, peak)
    if first.rebuilt:
        dense = first.cost
        made = cost(structure, first.work, first.itemsize)
        rebuild = sum(dense_weight(term).order.flops for term in structure.terms)
        rebuild *= first.work.factor
        return Cost(made.params, dense.flops + rebuild, made.bytes, dense.params)
    return cost(structure, first.work, first.itemsize)


def ladder(
    family: Family, target: Target, tails: Mapping[str, Tails], round_to: int
) -> tuple[Candidate, ...]:
    """Return candidates of rising size. Fixed ranks or a fixed share give one candidate.

    `tails` holds the squared error by rank for every bond that cuts the network in two.
    """
    template = template_of(family, target)
    rule = target.rule
    if rule.ranks == "full":
        return (_candidate(family, target, template, template.bound, tails),)
    if rule.ranks:
        _check_bounds(template, rule.ranks, target)
        return (_candidate(family, target, template, dict(rule.ranks), tails),)
    if rule.keep is not None:
        return (_candidate(family, target, template, kept(template, target, rule.keep), tails),)
    dense = target.signature.parameters
    sizes = [dense * step // STEPS for step in range(1, STEPS)]
    found: dict[tuple[tuple[str, int], ...], Candidate] = {}
    for group, ranks in _grouped(family, template, tails, sizes, round_to):
        key = tuple(sorted(ranks.items()))
        candidate = _candidate(family, target, template, ranks, tails, group)
        if key not in found and candidate.cost.params <= WORTHWHILE * dense:
            found[key] = candidate
    return tuple(sorted(found.values(), key=lambda c: (c.cost.params, str(c.structure))))


def _check_bounds(template: Template, ranks: Mapping[str, int], target: Target) -> None:
    """Raise PlanError for a rank above what is of use: it would only add parameters."""
    for name, rank in ranks.items():
        if rank > template.bound.get(name, rank):
            raise PlanError(
                f"rank {name} is {rank}, above {template.bound[name]} nothing is gained for "
                f"{target.name} ({target.signature})",
                where=target.where,
                hint=f"give {name}: {template.bound[name]} or less, or `ranks: full`, or match "
                "this site with a rule of its own",
            )


def kept(template: Template, target: Target, share: float) -> dict[str, int]:
    """Return evenly scaled ranks for a share of the dense parameters. Raises InfeasibleBudget."""
    ranks = template.within(int(share * target.signature.parameters))
    if ranks is None:
        raise InfeasibleBudget(
            f"no rank of {template.equation} keeps {share:.3g} of {target.name}",
            where=target.where,
            hint="raise `keep`",
        )
    return ranks


def _grouped(
    family: Family,
    template: Template,
    tails: Mapping[str, Tails],
    sizes: list[int],
    round_to: int,
) -> list[tuple[str, dict[str, int]]]:
    """Return ranks with their group: a sum has one for each way to share out its parameters."""
    if not template.parts:
        return [("", ranks) for ranks in _rank_sets(family, template, tails, sizes, round_to)]
    found = []
    for shares in splits(len(template.parts)):
        for size in sizes:
            ranks = template.shared([int(size * share) for share in shares], round_to)
            if ranks is not None:
                found.append((":".join(f"{share:.2f}" for share in shares), ranks))
    return found


def splits(terms: int) -> list[tuple[float, ...]]:
    """Return how the terms of a sum may share its parameters: equally, or one with the most.

    >>> splits(2)
    [(0.5, 0.5), (0.75, 0.25), (0.25, 0.75), (0.9, 0.1), (0.1, 0.9)]
    """
    found: list[tuple[float, ...]] = [(1 / terms,) * terms]
    for most in MOST:
        rest = round((1 - most) / (terms - 1), 6)
        found += [
            tuple(most if k == place else rest for k in range(terms)) for place in range(terms)
        ]
    return found


def _rank_sets(
    family: Family,
    template: Template,
    tails: Mapping[str, Tails],
    sizes: list[int],
    round_to: int,
) -> list[dict[str, int]]:
    if len(template.bounds) == 1:
        ((name, top),) = template.bounds
        step = max(round_to if top >= 4 * round_to else 1, top // 64)
        step = -(-step // round_to) * round_to if step > round_to else step
        return [{name: rank} for rank in range(min(step, top), top + 1, step)]
    found = []
    if len(tails) == len(template.bounds):
        found = [dict(ranked.ranks) for ranked in climb(template, tails, sizes, round_to)]
    if family.fit == "hosvd":
        found += _packed(template, tails, sizes)
    if not found:
        scaled = [template.within(size, round_to) for size in sizes]
        found = [ranks for ranks in scaled if ranks is not None]
    return found


def _packed(
    template: Template, tails: Mapping[str, Tails], sizes: list[int]
) -> list[dict[str, int]]:
    """Return core shapes by exact packing, where every bond is a mode of one core."""
    core = max(template.equation.cores, key=lambda c: sum(n in template.bound for n in c.indices))
    if any(name not in tails or name not in core.indices for name, _ in template.bounds):
        return []
    legs = dict(template.legs)
    names = list(core.indices)
    fixed = tuple(place for place, name in enumerate(names) if name in legs)
    modes = [legs[n] if n in legs else _mode(template, core.name, n) for n in names]
    spectra = tuple(
        np.zeros(size) if name in legs else _squares(tails[name], size)
        for name, size in zip(names, modes)
    )
    found = []
    for size in sizes[::3]:
        try:
            shapes = shortlist(Packing(spectra, tuple(modes), size, fixed), solvers=(pack_exact,))
        except InfeasibleBudget:
            continue
        found += [
            {name: rank for name, rank in zip(names, shape.ranks) if name in template.bound}
            for shape in shapes
        ]
    return found


def _mode(template: Template, centre: str, bond: str) -> int:
    legs = dict(template.legs)
    factor = next(c for c in template.equation.cores if bond in c.indices and c.name != centre)
    return prod(legs.get(name, 1) for name in factor.indices)


def _squares(tails: Tails, size: int) -> Tails:
    squares = np.maximum(-np.diff(tails), 0.0)
    return np.pad(squares, (0, max(0, size - len(squares))))[:size]


def _candidate(
    family: Family,
    target: Target,
    template: Template,
    ranks: Mapping[str, int],
    tails: Mapping[str, Tails],
    group: str = "",
) -> Candidate:
    structure = template.at(ranks)
    known = bool(template.bounds) and all(name in tails for name, _ in template.bounds)
    surrogate = sum(
        float(tails[name][min(rank, len(tails[name]) - 1)])
        for name, rank in ranks.items()
        if name in tails
    )
    fit = family.fit if target.rule.fit == "auto" else target.rule.fit
    return Candidate(
        structure,
        name_of(family),
        fit,
        cost_of(structure, target),
        surrogate if known else float("nan"),
        known and len(template.bounds) == 1,
        group,
    )
