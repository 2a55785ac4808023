"""Networks whose bonds join pairs of cores in any graph: trees inside it start a descent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise, permutations

import torch
from torch import Tensor

from tnc.derive import core_std
from tnc.fit.als import special_fit
from tnc.fit.embedding import compete, drawn, embedded, shaken, without
from tnc.fit.method import DirectFit, Outcome, fits, saturated
from tnc.fit.modes import bonds_between, shares_legs
from tnc.net import Network, Structure

_PATHS = 3


class GraphALS(DirectFit):
    """Any pattern of bonds between pairs of cores with a path through all (Zheng et al., 2021).

    Starts are the trains along a few such paths, their other bonds at one value: exact where the
    train ranks are full. They are shaken, since zeros do not move, and compete with random cores.
    """

    name = "graph-als"
    order = 8

    def refuses(self, network: Network) -> str:
        reason = shares_legs(network)
        joined = bonds_between(network)
        if reason or isinstance(joined, str):
            return reason or str(joined)
        if not any(True for _ in _trains(network)):
            return "no path runs through all its cores"
        return ""

    def complete(self, network: Network) -> bool:
        return any(saturated(train) for train, _ in islice(_trains(network), _PATHS))

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        structure = Structure.of(network)
        weight = folded.reshape(structure.signature.shape)
        generator = torch.Generator().manual_seed(seed)
        std = core_std(structure, float(weight.square().mean().sqrt()) or 1.0)
        exact, moved = [], []
        for train, dropped in islice(_trains(network), _PATHS):
            fit = special_fit(Structure.of(train))
            assert fit is not None  # a chain has one
            cores = fit.solve(folded, train, seed).cores
            exact.append(embedded(network, cores, dict.fromkeys(dropped, 0)))
            moved.append(shaken(exact[-1], generator))
        random = [drawn(network, std, generator)]
        return compete(weight, structure, [*exact, *moved, *random])


def _trains(network: Network) -> Iterator[tuple[Network, tuple[str, ...]]]:
    """Yield the chains inside a network with the bonds that each leaves out."""
    joined = bonds_between(network)
    assert not isinstance(joined, str)  # the caller has checked
    names = [core.name for core in network.equation.cores]
    for path in islice(permutations(names), 5040):
        pairs = [tuple(sorted(pair, key=names.index)) for pair in pairwise(path)]
        if names.index(path[0]) > names.index(path[-1]) or any(p not in joined for p in pairs):
            continue
        kept = {bond for pair in pairs for bond in joined[pair[0], pair[1]]}
        dropped = tuple(bond for bond in network.equation.bonds if bond not in kept)
        yield without(network, dropped), dropped


fits.register(GraphALS.name)(GraphALS())
