"""Sums: each term by its own fit, in turn, to what the others leave of the weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tnc.fit.fitting import choose, fitted
from tnc.fit.folding import reconstruct
from tnc.fit.method import Fit, Outcome, fits
from tnc.fit.metric import Metric
from tnc.net import Structure

ROUNDS, SETTLED, SWEEPS = 6, 1e-3, 2


class Turns(Fit):
    """`min over term k of ||W - sum_j W_j||`, for one k after another (block coordinate descent).

    Each term is fitted by the first fit that takes it, in the metric, to the weight without the
    other terms; what does not lower the error is taken back. The first round is made in both
    orders, and the better one goes on. Ends after `ROUNDS`, or when a round lowers the error by
    less than `SETTLED` of it. For low rank and a sparse rest this is GoDec (Zhou and Tao, 2011).
    """

    name = "sum"
    aware = "both"
    order = 8

    def accepts(self, structure: Structure) -> str:
        if len(structure.terms) < 2:
            return "it is one network, no sum"
        held = [name for name, kind in structure.kinds.items() if kind != "trainable"]
        return f"core {held[0]} is {structure.kinds[held[0]]}" if held else ""

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        places = range(len(structure.terms))
        begun = [_Sum(weight, structure, metric, seed) for _ in range(2)]
        for run, order in zip(begun, (places, reversed(places))):
            run.round(order)
        best = min(begun, key=lambda run: run.error)
        whole = metric.norm(weight, structure.signature)
        rounds, converged = 1, False
        while rounds < ROUNDS and not converged:
            before = best.error
            best.round(places)
            rounds += 1
            converged = before - best.error <= SETTLED * before or best.error <= 1e-12 * whole
        joined = {name: core for held in best.cores for name, core in held.items()}
        return Outcome(joined, rounds, converged, f"{rounds} rounds over {len(places)} terms")


class _Sum:
    """The terms of a sum while they are fitted: cores and dense part of each."""

    def __init__(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> None:
        self.weight, self.metric, self.seed = weight, metric, seed
        self.terms = [Structure(structure.signature, (term,)) for term in structure.terms]
        self.cores: list[Mapping[str, Tensor]] = [{} for _ in self.terms]
        self.parts = [torch.zeros_like(weight) for _ in self.terms]
        self.error = metric.norm(weight, structure.signature)

    def round(self, order: Iterable[int]) -> None:
        """Fit every term once to what the others leave."""
        for place in order:
            term = self.terms[place]
            rest = self.weight - sum(p for k, p in enumerate(self.parts) if k != place)
            found = fitted(rest, term, choose(term), self.metric, self.seed + place, SWEEPS).cores
            part = reconstruct(term, found)
            then = self.metric.norm(rest - part, term.signature)
            if then < self.error or not self.cores[place]:
                self.cores[place], self.parts[place], self.error = found, part, then


fits.register(Turns.name)(Turns())
