"""Sums: each term by its own fit, in turn, to what the others leave of the weight."""

from __future__ import annotations

from collections.abc import Mapping

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
    other terms; what does not lower the error is taken back. Ends after `ROUNDS`, or when a round
    lowers the error by less than `SETTLED` of it. For low rank and a sparse rest this is GoDec
    (Zhou and Tao, 2011).
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
        terms = [Structure(structure.signature, (term,)) for term in structure.terms]
        cores: list[Mapping[str, Tensor]] = [{} for _ in terms]
        parts = [weight.new_zeros(weight.shape) for _ in terms]
        error = whole = metric.norm(weight, structure.signature)
        rounds, converged = 0, False
        while rounds < ROUNDS and not converged:
            before = error
            for place, term in enumerate(terms):
                rest = weight - _sum(parts) + parts[place]
                found = fitted(rest, term, choose(term), metric, seed + place, SWEEPS).cores
                part = reconstruct(term, found)
                then = metric.norm(rest - part, structure.signature)
                if then < error or not cores[place]:
                    cores[place], parts[place], error = found, part, then
            rounds += 1
            converged = before - error <= SETTLED * before or error <= 1e-12 * whole
        joined = {name: core for held in cores for name, core in held.items()}
        return Outcome(joined, rounds, converged, f"{rounds} rounds over {len(terms)} terms")


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


fits.register(Turns.name)(Turns())
