"""Marginals of a moment: what a metric says about some of the legs of a side.

A moment over legs (D, F, E) is approximated by `M[D; F F'] (x) M[D; E E'] / trace[D]`: diagonal
blocks over D, partial traces over the rest. Exact where E and D are empty.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.fit.folding import fold_side, side_legs
from tnc.fit.metric import SIDES, Metric, Moment, ridged_spectrum
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Axis, Network, Signature


@dataclass(frozen=True, eq=False)
class FoldedMoment:
    """A moment over the legs of one side of a network: `(*legs,)` or `(*legs, *legs)`."""

    side: str
    tensor: Tensor
    legs: Axis
    source: Moment
    padded: bool = False

    @property
    def full(self) -> bool:
        """Whether it couples the legs; a diagonal does not."""
        return self.tensor.ndim == 2 * len(self.legs)

    def marginal(self, keep: Axis, blocks: Axis) -> Tensor:
        """Return `[*blocks, *keep, *keep]`, or `[*blocks, *keep]` of a diagonal; trace the rest."""
        if not self.full:
            return einsum([(self.tensor, self.legs)], (*blocks, *keep))
        copies = tuple(starred(n) if n in keep else n for n in self.legs)
        return _trace(self.tensor, self.legs, copies, (*blocks, *keep, *map(starred, keep)))

    def roots(self, keep: Axis, blocks: Axis) -> tuple[Tensor, Tensor]:
        """Return S and S^-1 of a marginal, in its shape, with `S S = marginal + ridge`; kept."""
        shape = self.tensor.shape[: len(self.legs)]
        places = tuple(tuple(self.legs.index(n) for n in group) for group in (keep, blocks))
        key = (tuple(shape), *places, self.padded)
        if key not in self.source.memo:
            if keep == self.legs and not self.padded:
                root, back = self.source.whitener
                found = (root.reshape(self.tensor.shape), back.reshape(self.tensor.shape))
            else:
                found = _roots(self.marginal(keep, blocks), len(blocks), len(keep))
            self.source.memo[key] = found
        return self.source.memo[key]


def starred(name: str) -> str:
    """Return the name of the second copy of an index in a quadratic form."""
    return name + "*"


def fold_moments(metric: Metric, term: Network, signature: Signature) -> list[FoldedMoment]:
    """Return the moments of a metric over the legs of a term; padding has no weight."""
    found = []
    for side in SIDES:
        moment = metric.moment(side)
        if moment is not None:
            tensor = fold_side(moment.ridged, term, signature, side)
            padded = term.signature != signature
            found.append(FoldedMoment(side, tensor, side_legs(term, side), moment, padded))
    return found


def _roots(marginal: Tensor, blocks: int, legs: int) -> tuple[Tensor, Tensor]:
    lead, shape = marginal.shape[:blocks], marginal.shape[blocks : blocks + legs]
    size = int(torch.Size(shape).numel())
    if marginal.ndim == blocks + legs:
        root = ridged_spectrum(marginal.reshape(*lead, size)).sqrt().reshape(marginal.shape)
        return root, 1 / root
    matrix = marginal.reshape(*lead, size, size)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    scale = ridged_spectrum(values).sqrt().unsqueeze(-2)
    both = ((vectors * scale) @ vectors.mT, (vectors / scale) @ vectors.mT)
    return both[0].reshape(marginal.shape), both[1].reshape(marginal.shape)


def product_form(moment: FoldedMoment, core: Axis, others: Collection[str]) -> list[Named]:
    """Return operands whose product stands in for a full moment, seen from a core.

    D are the legs that the core shares with other cores, F its own, E those it does not carry.
    """
    blocks = tuple(n for n in moment.legs if n in core and n in others)
    own = tuple(n for n in moment.legs if n in core and n not in others)
    rest = tuple(n for n in moment.legs if n not in core)
    trace = moment.marginal((), blocks)
    safe = torch.where(trace > 0, trace, torch.ones_like(trace))
    found: list[Named] = []
    for legs in (own, rest):
        if legs:
            found.append((moment.marginal(legs, blocks), (*blocks, *legs, *map(starred, legs))))
    if own and rest:
        found.append((1 / safe, blocks))
    if not found:
        found.append((trace, blocks))
    return found


def _trace(tensor: Tensor, legs: Axis, copies: Axis, output: Axis) -> Tensor:
    letters = {name: chr(97 + place) for place, name in enumerate(dict.fromkeys((*legs, *copies)))}
    spelled = "".join(letters[name] for name in (*legs, *copies))
    return torch.einsum(f"{spelled}->{''.join(letters[name] for name in output)}", tensor)
