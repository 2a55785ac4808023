"""Any tree of cores by truncated SVDs from its leaves to its centre."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tnc.fit.folding import legs_of
from tnc.fit.method import DirectFit, Outcome, fits
from tnc.fit.modes import bonds_between, equalised, joint
from tnc.fit.named_einsum import Named, einsum
from tnc.fit.pair import svd
from tnc.net import Axis, Core, Network

if TYPE_CHECKING:
    import networkx as nx


class TreeSVD(DirectFit):
    """Hierarchical SVD (Grasedyck, 2010), for every network whose bonds make a tree.

    A leaf of the tree takes the leading left singular vectors of the weight unfolded by its legs,
    what is left is carried on. Legs that several cores carry make the unfolding one matrix for each
    of their values, as in butterflies. The squared error is at most the sum of the tails over all
    bonds, so within a factor of their number of the optimum.
    """

    name = "tree-svd"
    takes_complex = True
    order = 7

    def refuses(self, network: Network) -> str:
        found = _elimination(network)
        return found if isinstance(found, str) else ""

    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        order = _elimination(network)
        assert not isinstance(order, str)  # accepted
        rest: Named = (folded, legs_of(network))
        left = [core for core, _ in order]
        found: dict[str, Tensor] = {}
        for core, towards in order[:-1]:
            assert towards is not None  # only the last core has no neighbour left
            left.remove(core)
            elsewhere = {n for other in left for n in other.indices}
            up = joint(network, core, towards)
            found[core.name], rest = _split_off(rest, network, core, up, elsewhere - {*up})
        centre = order[-1][0]
        found[centre.name] = einsum([rest], centre.indices).contiguous()
        return Outcome(equalised(network, found))


def _elimination(network: Network) -> list[tuple[Core, Core | None]] | str:
    """Return cores from the leaves inwards, each with its neighbour; or why there is no tree."""
    import networkx as nx

    equation = network.equation
    if equation.shared:
        return f"leg {equation.shared[0]} is input and output at once"
    held = {n for core in equation.cores for n in core.indices}
    bare = [n for n in (*equation.output_indices, *equation.input_indices) if n not in held]
    if bare:
        return f"leg {bare[0]} hangs on no core"
    joined = bonds_between(network)
    if isinstance(joined, str):
        return joined
    names = [core.name for core in equation.cores]
    graph = nx.Graph()
    graph.add_nodes_from(names)
    graph.add_edges_from(joined)
    if len(names) < 2 or not nx.is_tree(graph):
        return "its bonds do not make a tree of two or more cores"
    return _leaves_first(graph, network)


def _leaves_first(graph: nx.Graph, network: Network) -> list[tuple[Core, Core | None]]:
    import networkx as nx

    names = [core.name for core in network.equation.cores]
    centre = min(nx.center(graph), key=names.index)
    depth: Mapping[str, int] = nx.single_source_shortest_path_length(graph, centre)
    found: list[tuple[Core, Core | None]] = []
    for name in sorted(names, key=lambda n: (-depth[n], names.index(n))):
        near = [n for n in graph.neighbors(name) if depth[n] < depth[name]]
        towards = network.equation.core(near[0]) if near else None
        found.append((network.equation.core(name), towards))
    return found


def _split_off(
    rest: Named, network: Network, core: Core, up: Axis, elsewhere: set[str]
) -> tuple[Tensor, Named]:
    """Return a core that spans the leading left vectors, and what is left of the weight."""
    axes = rest[1]
    batch = tuple(n for n in core.indices if n in elsewhere)
    own = tuple(n for n in core.indices if n not in elsewhere and n not in up)
    beyond = tuple(n for n in axes if n not in batch and n not in own)
    groups = [[network.size[n] for n in group] for group in (batch, own, beyond)]
    unfolded = einsum([rest], (*batch, *own, *beyond)).reshape([prod(group) for group in groups])
    u, s, v = svd(unfolded)
    rank = prod(network.size[n] for n in up)
    missing = max(0, rank - s.shape[-1])
    left = torch.nn.functional.pad(u[..., :rank], (0, missing))
    right = s[..., :rank].unsqueeze(-1) * v[..., :rank, :]
    right = torch.nn.functional.pad(right, (0, 0, 0, missing))
    ranks = [network.size[n] for n in up]
    made = left.reshape(*groups[0], *groups[1], *ranks)
    kept = right.reshape(*groups[0], *ranks, *groups[2])
    tensor = einsum([(made, (*batch, *own, *up))], core.indices).contiguous()
    return tensor, (kept, (*batch, *up, *beyond))


fits.register(TreeSVD.name)(TreeSVD())
