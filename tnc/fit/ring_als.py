"""Tensor rings: sequential SVD starts, then alternating least squares."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tnc.fit.descent import Descent, Settings
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.metric import Metric
from tnc.fit.modes import joint, merge, own_legs, shaped, walk
from tnc.fit.pair import svd
from tnc.fit.sequential_svd import train_svd
from tnc.net import Core, Network, Structure

EXACT = 1e-12
TRIAL, SWEEPS, KEPT = 6, 60, 2
_NOISE = 1e-2


class RingALS(DirectFit):
    """`W = G1[r0 legs1 r1] G2[r1 legs2 r2] ... GN[.. legsN r0]` (Zhao et al., 2016).

    Starts, for every place where the ring can be cut: TR-SVD (their algorithm 1), whose first
    singular values fill both bonds of a core; and the train that uses one value of the bond at the
    cut, which is exact where train ranks are. The best starts compete over a short run.
    """

    name = "ring-als"
    order = 6

    def refuses(self, network: Network) -> str:
        path = walk(network, closed=True)
        return path if isinstance(path, str) else ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        ring = walk(network, closed=True)
        assert not isinstance(ring, str)  # accepted
        structure = Structure.of(network)
        weight = folded.reshape(structure.signature.shape)
        generator = torch.Generator().manual_seed(seed)
        runs = []
        for place in range(len(ring)):
            turned = ring[place:] + ring[:place]
            tensor = merge(folded, network, turned)
            train = _train_start(tensor, network, turned)
            run = _descent(weight, structure, train, TRIAL)
            if run.error <= EXACT * float(weight.norm()):
                return Outcome(train)
            runs.append(_descent(weight, structure, _ring_start(tensor, network, turned), TRIAL))
            runs.append(_descent(weight, structure, _shaken(train, generator), TRIAL))
        return _best(runs, weight, structure)


def _best(runs: list[Descent], weight: Tensor, structure: Structure) -> Outcome:
    """Run the best few starts a little, and the best of those to the end."""
    short = sorted(runs, key=lambda run: run.error)[: 2 * KEPT]
    tried = [(run.run(), run.error) for run in short]
    found, _ = min(tried, key=lambda pair: pair[1])
    longer = _descent(weight, structure, found.cores, SWEEPS).run()
    return Outcome(longer.cores, found.iterations + longer.iterations, longer.converged)


def _descent(
    weight: Tensor, structure: Structure, cores: dict[str, Tensor], sweeps: int
) -> Descent:
    return Descent(weight, structure, cores, Metric(), Settings(sweeps=sweeps, tolerance=1e-5))


def _ranks(network: Network, ring: list[Core]) -> list[int]:
    """Return the rank of the bond before each core."""
    return [
        prod(network.size[n] for n in joint(network, before, core))
        for before, core in zip([ring[-1], *ring], ring)
    ]


def _train_start(tensor: Tensor, network: Network, ring: list[Core]) -> dict[str, Tensor]:
    """Cut the ring before its first core: a train in the first value of that bond."""
    close, *inner = _ranks(network, ring)
    parts = train_svd(tensor, inner)
    parts[0] = torch.nn.functional.pad(parts[0], (0, 0, 0, 0, 0, close - 1))
    parts[-1] = torch.nn.functional.pad(parts[-1], (0, close - 1))
    return _named(parts, network, ring)


def _ring_start(tensor: Tensor, network: Network, ring: list[Core]) -> dict[str, Tensor]:
    """TR-SVD: the first unfolding fills both bonds of the first core."""
    close, first, *inner = _ranks(network, ring)
    size, rest = tensor.shape[0], tuple(tensor.shape[1:])
    u, s, v = svd(tensor.reshape(size, -1))
    have = min(len(s), close * first)
    missing = close * first - have
    left = torch.nn.functional.pad(u[:, :have], (0, missing)).reshape(size, first, close)
    right = torch.nn.functional.pad(s[:have, None] * v[:have], (0, 0, 0, missing))
    carried = right.reshape(first, close, *rest).movedim(1, -1)
    carried = carried.reshape(first * rest[0], *rest[1:-1], rest[-1] * close)
    parts = train_svd(carried, inner)
    parts[0] = parts[0].reshape(first, rest[0], -1)
    parts[-1] = parts[-1].reshape(-1, rest[-1], close)
    return _named([left.permute(2, 0, 1), *parts], network, ring)


def _named(parts: list[Tensor], network: Network, ring: list[Core]) -> dict[str, Tensor]:
    found = {}
    for place, (core, tensor) in enumerate(zip(ring, parts)):
        before = joint(network, ring[place - 1], core)
        after = joint(network, core, ring[(place + 1) % len(ring)])
        axes = (*before, *own_legs(network, core), *after)
        found[core.name] = shaped(tensor, network, core, axes)
    return found


def _shaken(cores: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Add noise, since cores that are zero on both sides of a bond do not move."""
    found = {}
    for name, core in cores.items():
        noise = torch.randn(core.shape, generator=generator, dtype=core.dtype)
        found[name] = core + noise * (_NOISE * core.square().mean().sqrt())
    return found


fits.register(RingALS.name)(RingALS())
