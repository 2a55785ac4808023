"""Merge legs to modes: one mode for each core, in the patterns where legs hang on one core each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from tnc.fit.folding import legs_of
from tnc.net import Axis, Core, Network


def own_legs(network: Network, core: Core) -> Axis:
    """Return the legs that a core carries, in its order."""
    bonds = set(network.equation.bonds)
    return tuple(n for n in core.indices if n not in bonds)


def shares_legs(network: Network) -> str:
    """Say which leg hangs on several cores, on none, or is input and output; empty when none is."""
    equation = network.equation
    if equation.shared:
        return f"leg {equation.shared[0]} is input and output at once"
    for name in (*equation.output_indices, *equation.input_indices):
        count = sum(name in core.indices for core in equation.cores)
        if count != 1:
            return f"leg {name} hangs on {count} cores"
    return ""


def merge(folded: Tensor, network: Network, cores: Sequence[Core]) -> Tensor:
    """Permute a folded weight to one mode for each core: `[mode_1, ..., mode_N]`."""
    axes = legs_of(network)
    groups = [own_legs(network, core) for core in cores]
    order = [axes.index(n) for group in groups for n in group]
    shape = [prod(network.size[n] for n in group) for group in groups]
    return folded.permute(order).reshape(shape)


def shaped(tensor: Tensor, network: Network, core: Core, axes: Sequence[str]) -> Tensor:
    """Return a core from a tensor of its indices in the order `axes`, dimensions merged or not."""
    split = tensor.reshape([network.size[n] for n in axes])
    return split.permute([list(axes).index(n) for n in core.indices]).contiguous()


def bonds_between(network: Network) -> Mapping[tuple[str, str], Axis] | str:
    """Return the bonds of every joined pair of cores, or say which bond joins not just two."""
    found: dict[tuple[str, str], Axis] = {}
    for bond in network.equation.bonds:
        ends = tuple(c.name for c in network.equation.cores if bond in c.indices)
        if len(ends) != 2:
            return f"bond {bond} joins {len(ends)} cores"
        pair = (ends[0], ends[1])
        found[pair] = (*found.get(pair, ()), bond)
    return found


def walk(network: Network, closed: bool) -> list[Core] | str:
    """Return the cores in order along a path, or along a cycle; else say why there is none."""
    import networkx as nx

    reason = shares_legs(network)
    joined = bonds_between(network)
    if reason or isinstance(joined, str):
        return reason or str(joined)
    graph = nx.Graph()
    graph.add_nodes_from(core.name for core in network.equation.cores)
    graph.add_edges_from(joined)
    degrees = sorted(degree for _, degree in graph.degree())
    count = len(degrees)
    form = [2] * count if closed else [1, 1] + [2] * (count - 2)
    if count < (3 if closed else 2) or degrees != form or not nx.is_connected(graph):
        return f"its cores do not form a {'ring' if closed else 'chain'}"
    names = [core.name for core in network.equation.cores]
    first = names[0] if closed else next(n for n in names if graph.degree(n) == 1)
    path = [first]
    while len(path) < count:
        near = [n for n in names if graph.has_edge(path[-1], n) and n not in path]
        path.append(near[0])
    return [network.equation.core(name) for name in path]


def joint(network: Network, first: Core, second: Core) -> Axis:
    """Return the bonds between two cores."""
    bonds = network.equation.bonds
    return tuple(n for n in bonds if n in first.indices and n in second.indices)


def equalised(network: Network, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return cores of the same weight where both ends of every bond have equal norms, by index."""
    found = dict(cores)
    joined = bonds_between(network)
    if isinstance(joined, str):
        return found
    for (left, right), bonds in sorted(joined.items()):
        ends = [(name, network.equation.core(name).indices) for name in (left, right)]
        for bond in bonds:
            norms = [
                found[name].abs().square().sum([k for k, n in enumerate(axes) if n != bond]).sqrt()
                for name, axes in ends
            ]
            alive = (norms[0] > 0) & (norms[1] > 0)
            ratio = torch.where(alive, norms[1] / norms[0].where(alive, norms[0].new_ones(())), 1.0)
            for sign, (name, axes) in zip((0.5, -0.5), ends):
                shape = [-1 if n == bond else 1 for n in axes]
                found[name] = found[name] * ratio.pow(sign).reshape(shape)
    return found
