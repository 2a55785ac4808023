"""Smaller networks inside a network: some indices at one value, as starts of descents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tnc.fit.descent import Descent, Settings
from tnc.fit.method import Outcome
from tnc.fit.metric import Metric
from tnc.net import Network, Structure

EXACT = 1e-12
_TRIAL, _LONGER, _SWEEPS, _KEPT = 3, 12, 80, 2
_NOISE = 1e-2


def without(network: Network, bonds: Collection[str]) -> Network:
    """Return the network in which some bonds have one value and are not written."""
    equation = network.equation
    cores = tuple(
        replace(core, indices=tuple(n for n in core.indices if n not in bonds))
        for core in equation.cores
    )
    sizes = {name: size for name, size in network.sizes if name not in bonds}
    return Network.of(replace(equation, cores=cores), sizes)


def embedded(
    network: Network, cores: Mapping[str, Tensor], at: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return cores of a network that are those of a smaller one at `at`, and zero elsewhere."""
    found = {}
    for core in network.equation.cores:
        tensor = cores[core.name]
        whole = tensor.new_zeros(network.shape(core))
        whole[tuple(at[n] if n in at else slice(None) for n in core.indices)] = tensor
        found[core.name] = whole
    return found


def shaken(cores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Add noise, since cores that are zero on all sides of a bond do not move."""
    found = {}
    for name, core in cores.items():
        noise = torch.randn(core.shape, generator=generator, dtype=core.dtype)
        found[name] = core + noise.to(core.device) * (_NOISE * core.square().mean().sqrt())
    return found


def drawn(
    network: Network, std: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return random cores of given deviations."""
    return {
        core.name: std[core.name]
        * torch.randn(network.shape(core), generator=generator, dtype=torch.float64)
        for core in network.equation.cores
    }


def compete(
    weight: Tensor, structure: Structure, starts: Sequence[Mapping[str, Tensor]]
) -> Outcome:
    """Run alternating least squares a little from every start, and on from the best.

    A start that is exact ends the contest.
    """
    floor = EXACT * (float(weight.norm()) or 1.0)
    runs: list[tuple[float, int, Outcome]] = []
    for place, start in enumerate(starts):
        run = _descent(weight, structure, start, _TRIAL)
        if run.error <= floor:
            return Outcome(dict(run.cores))
        found = run.run()
        runs.append((run.error, place, found))
    best: list[tuple[float, int, Outcome]] = []
    for _, place, tried in sorted(runs, key=lambda item: item[:2])[:_KEPT]:
        run = _descent(weight, structure, tried.cores, _LONGER)
        best.append((0.0, place, run.run()))
        best[-1] = (run.error, place, best[-1][2])
    chosen = min(best, key=lambda item: item[:2])[2]
    last = _descent(weight, structure, chosen.cores, _SWEEPS).run()
    return Outcome(last.cores, _TRIAL + chosen.iterations + last.iterations, last.converged)


def _descent(
    weight: Tensor, structure: Structure, cores: Mapping[str, Tensor], sweeps: int
) -> Descent:
    settings = Settings(sweeps=sweeps, tolerance=1e-4)
    return Descent(weight, structure, cores, Metric(), settings)
