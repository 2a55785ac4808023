"""Choose sizes weight by weight under one budget: one knapsack over what each size can reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite
from typing import Literal

import torch
from torch import Tensor, nn

from tnc.adapters.choosing import Choice, Chosen
from tnc.adapters.given import Given
from tnc.adapters.start import wide
from tnc.decide.allocation import Choice as Candidate
from tnc.decide.allocation import allocate
from tnc.errors import PlanError

Ground = Literal["gradient", "residual"]
BUDGET = "trained"


def sized(model: nn.Module, choice: Choice, given: Given) -> Choice:
    """Choose the sizes that an adapter's rules leave to its budget.

    max sum_w E_w(size_w)  subject to  sum_w trained_w(size_w) <= budget

    E_w are the squared singular values that a delta of that size can reach: of the mean gradient of
    the loss, or, for methods that start from the original, of what the compressed weight lost, as a
    share of the original (both in the norm of the layer's inputs where the method measures them). A
    weight may get none. Raises PlanError, and InfeasibleBudget where what the rules fix is above.
    """
    wanted = choice.wanted
    if wanted.budget is None:
        return choice
    whole = sum(parameter.numel() for parameter in model.parameters())
    limit = wanted.budget if isinstance(wanted.budget, int) else int(wanted.budget * whole)
    free = [each for each in choice.chosen if each.rule.open]
    energies = dict(_energies(model, free, given, wanted.where)) if free else {}
    candidates = [_candidates(model, each, energies.get(each.name)) for each in choice.chosen]
    found = allocate([[_priced(c) for c in own] for own in candidates], {BUDGET: limit})
    chosen, reasons = [], list(choice.reasons)
    for each, own, pick in zip(choice.chosen, candidates, found.picks):
        taken = own[pick][0]
        if taken is not None:
            chosen.append(taken)
        else:
            reasons.append((each.name, "the budget keeps more elsewhere"))
    if not chosen:
        raise PlanError(
            f"a budget of {limit:,} trained parameters is too small for any weight",
            where=wanted.where,
            hint=f"the smallest adapter has {_least(candidates):,}",
        )
    return replace(choice, chosen=tuple(chosen), reasons=tuple(sorted(reasons)))


Option = tuple[Chosen | None, int, float]
"""A weight with a size (None: without an adapter), what it trains, and what it leaves out."""


def _priced(option: Option) -> Candidate:
    return Candidate((float(option[1]),), option[2])


def _least(candidates: Sequence[Sequence[Option]]) -> int:
    return min(count for own in candidates for _, count, _ in own if count)


def _candidates(model: nn.Module, each: Chosen, energy: list[float] | None) -> list[Option]:
    read = partial(each.place.mapped, model)
    site = each.place.site
    if energy is None:
        return [(each, each.method.trained(site, read), 0.0)]
    total = sum(energy)
    found: list[Option] = [(None, 0, total)]
    for method in each.method.sizes(site):
        kept = min(total, method.kept(energy))
        share = f"{kept / total:.0%}" if total else "none"
        reason = f"the budget: keeps {share} of its {_ground(each)} energy"
        taken = replace(each, method=method, reason=reason)
        found.append((taken, method.trained(site, read), total - kept))
    return found


def _ground(each: Chosen) -> Ground:
    return "residual" if "original" in each.method.needs else "gradient"


def _energies(
    model: nn.Module, free: Sequence[Chosen], given: Given, where: str
) -> Iterator[tuple[str, list[float]]]:
    grounds = {_ground(each) for each in free}
    if len(grounds) > 1:
        raise PlanError(
            "a budget compares either gradients or what compressed weights lost, and the methods "
            "start from both",
            where=where,
            hint="make two adapters, each with a budget of its own",
        )
    residual = "residual" in grounds
    if residual:
        given.check("original", "a budget chooses ranks", where)
        if any("moment" in each.method.needs for each in free):
            given.check("moment", "a budget chooses ranks", where)
            given.measure_(model, [each.place for each in free])
        found = [(each.name, _lost(model, each, given)) for each in free]
    else:
        given.check("gradient", "a budget chooses ranks", where)
        stream = given.gradients(model, free)
        found = [(each.name, _squared(_matrix(each, g))) for each, g in stream]
    for name, energy in found:
        if not all(map(isfinite, energy)):
            raise PlanError(f"the {grounds.pop()} of {name} is not finite", where=name)
    if not any(any(energy) for _, energy in found):
        raise PlanError(
            f"every {grounds.pop()} is zero: ranks cannot be chosen by it",
            where=where,
            hint="the base computes what the original does: write ranks, or choose another method"
            if residual
            else "the loss does not depend on the weights: give one that does, or write ranks",
        )
    yield from found


def _lost(model: nn.Module, each: Chosen, given: Given) -> list[float]:
    """Return the squared singular values of what a weight lost, as shares of the original."""
    site = each.place.site
    was = given.was(site)
    if was is None:
        raise PlanError(
            f"the original model has no weight {site.name}",
            where=site.name,
            hint="give the model that the base was made of, or leave the weight alone",
        )
    original = _matrix(each, wide(was))
    lost = original - _matrix(each, wide(each.place.mapped(model)))
    moment = given.moment(site) if "moment" in each.method.needs else None
    if moment is not None:
        scale = _root(moment).to(original)
        if site.op == "embedding":  # its moment is of the rows that are looked up
            original, lost = original.T, lost.T
        original, lost = _weighted(original, scale), _weighted(lost, scale)
    whole = float(original.double().square().sum()) or 1.0
    return [value / whole for value in _squared(lost)]


def _matrix(each: Chosen, tensor: Tensor) -> Tensor:
    experts = tensor.dim() > 2 and len(each.place.site.signature.outputs) > 1
    return tensor.flatten(2) if experts else tensor.flatten(1)


def _root(moment: Tensor) -> Tensor:
    if moment.dim() == 1:
        return moment.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(moment.double())
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root.to(moment.dtype)


def _weighted(matrix: Tensor, scale: Tensor) -> Tensor:
    return matrix * scale if scale.dim() == 1 else matrix @ scale


def _squared(matrix: Tensor) -> list[float]:
    """Return squared singular values, largest first; of a stack of matrices, their sums."""
    values = torch.linalg.svdvals(matrix.double()).square()
    return (values if values.dim() == 1 else values.sum(0)).tolist()  # type: ignore[no-any-return]
