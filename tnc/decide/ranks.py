"""Choose ranks of several bonds from their spectra, for a ladder of sizes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tnc.derive.cost import parameters
from tnc.structures import Template

Tails = npt.NDArray[np.float64]
"""`tails[r]` is the squared error when a bond has rank r, for r = 0 .. bound."""


@dataclass(frozen=True)
class Ranked:
    """Ranks with their size and the sum of the tails of all bonds: a bound on the squared error."""

    ranks: tuple[tuple[str, int], ...]
    params: int
    error: float


def climb(
    template: Template, tails: Mapping[str, Tails], sizes: Sequence[int], round_to: int = 1
) -> tuple[Ranked, ...]:
    """Return the best ranks found for each size in `sizes` (parameters), smallest first.

    Bang for the buck (Ghadiri et al., 2023): from rank one, raise the bond that lowers its tail
    most for each parameter. The whole ladder is read off one climb. Bonds without tails rise with
    the others in proportion to their bounds. Sizes below the smallest structure give nothing.
    """
    ranks = {name: min(round_to, top) for name, top in template.bounds}
    if sizes and parameters(template.at(ranks)) > min(sizes):
        ranks = {name: 1 for name, _ in template.bounds}
    found: dict[int, Ranked] = {}
    wanted = sorted(sizes)
    while True:
        here = _ranked(template, tails, ranks)
        for size in wanted:
            if here.params <= size and (size not in found or here.error <= found[size].error):
                found[size] = here
        best = _best_move(template, tails, ranks, here, round_to)
        if best is None or not wanted or here.params > wanted[-1]:
            break
        ranks = best
    unique = {ranked.ranks: ranked for ranked in found.values()}
    return tuple(sorted(unique.values(), key=lambda ranked: (ranked.params, ranked.ranks)))


def _best_move(
    template: Template,
    tails: Mapping[str, Tails],
    ranks: dict[str, int],
    here: Ranked,
    round_to: int,
) -> dict[str, int] | None:
    best, rate = None, -1.0
    for name, top in template.bounds:
        if ranks[name] >= top:
            continue
        raised = ranks[name] + round_to - ranks[name] % round_to
        moved = {**ranks, name: min(top, raised)}
        then = _ranked(template, tails, moved)
        gain = (here.error - then.error) / max(1, then.params - here.params)
        if name not in tails:  # no spectrum: keep in step with the most advanced bond
            behind = max(ranks[n] / t for n, t in template.bounds) - ranks[name] / top
            gain = float("inf") if behind > 0 else 0.0
        if gain > rate:
            best, rate = moved, gain
    return best


def _ranked(template: Template, tails: Mapping[str, Tails], ranks: dict[str, int]) -> Ranked:
    error = sum(
        float(tails[name][min(rank, len(tails[name]) - 1)])
        for name, rank in ranks.items()
        if name in tails
    )
    return Ranked(tuple(sorted(ranks.items())), parameters(template.at(ranks)), error)
