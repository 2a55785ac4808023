"""The largest entries of a weight, their values refitted in the metric."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.conjugate import conjugate_gradients
from tnc.fit.kept import strongest, weighed
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.metric import Metric, Moment
from tnc.net import Network, Structure

STEPS = 40


class Largest(DirectFit):
    """Keep the entries that contribute most to the norm: the optimum in the plain norm.

    In a metric entries are scored by `G[o, o] W[o, i]^2 C[i, i]`, what each adds to the norm by
    itself, which is exact for diagonal moments. Others couple the entries: the kept values then
    solve `min ||sqrt(G) (W - S) sqrt(C)||` on their positions, by conjugate gradients (the second
    step of Frantar and Alistarh, SparseGPT, 2023, in both moments at once).
    """

    name = "sparse"
    aware = "both"
    order = 0

    def accepts(self, structure: Structure) -> str:
        if len(structure.terms) != 1:
            return f"it is a sum of {len(structure.terms)} terms"
        cores = structure.terms[0].equation.cores
        if len(cores) != 1 or not cores[0].stored:
            return "it is not one sparse core"
        if structure.padded:
            return "it is padded"
        return "" if cores[0].kind == "trainable" else f"core {cores[0].name} is {cores[0].kind}"

    def honours(self, structure: Structure, metric: Metric) -> bool:
        return True

    def refuses(self, network: Network) -> str:
        return ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        raise NotImplementedError  # `outcome` needs no folding

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        (term,) = structure.terms
        (core,) = term.equation.cores
        matrix = weight.reshape(prod(structure.signature.outputs), -1)
        mask = strongest(_scores(matrix, metric), term.stored(core))
        values = torch.where(mask, matrix, torch.zeros_like(matrix))
        if any(moment is not None and moment.given.ndim == 2 for moment in _moments(metric)):
            values = values + _refitted(matrix - values, mask, metric)
        axes = (*term.equation.output_indices, *term.equation.input_indices)
        folded = values.reshape([term.size[n] for n in axes])
        return Outcome({core.name: folded.permute([axes.index(n) for n in core.indices])})


def _moments(metric: Metric) -> tuple[Moment | None, Moment | None]:
    return metric.moment("outputs"), metric.moment("inputs")


def _scores(matrix: Tensor, metric: Metric) -> Tensor:
    scores = matrix.square()
    for moment, shape in zip(_moments(metric), ((-1, 1), (1, -1))):
        if moment is not None:
            weights = moment.ridged if moment.given.ndim == 1 else moment.ridged.diagonal()
            scores = scores * weights.reshape(shape)
    return scores


def _refitted(rest: Tensor, mask: Tensor, metric: Metric) -> Tensor:
    """Return the change of the kept values that takes up most of what was dropped."""
    scale = _scores(torch.ones_like(rest), metric)
    return conjugate_gradients(
        lambda change: torch.where(mask, weighed(change, metric), torch.zeros_like(change)),
        torch.where(mask, weighed(rest, metric), torch.zeros_like(rest)),
        lambda tensor: tensor / scale,
        STEPS,
    )


fits.register(Largest.name)(Largest())
