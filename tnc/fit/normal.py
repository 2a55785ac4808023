"""Normal equations of one core: `J^T (G (x) C) J`, as a Kronecker product of what hangs together.

The weight is linear in a core, `W = J(core)`. The Gram matrix of J under a metric is a contraction
of the other cores with their copies and the moments. Legs without a full moment are diagonal in it
(batches); operands that share no other index fall into independent factors. So a low-rank core
under an input moment has `(B^T B) (x) C`, a CP factor the Hadamard product of r x r Grams, and a
block tensor train a small matrix a block, without any of them being named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from tnc.derive import Contraction, dense
from tnc.fit.marginal import FoldedMoment, product_form, starred
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Axis, Network

LARGEST = 2500  # rows of a matrix that is factorised
_LARGEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Factor:
    """One independent factor: operands, their copies merged; a matrix over `rows` a `batch`."""

    operands: tuple[int, ...]
    batch: Axis
    rows: Axis

    @property
    def output(self) -> Axis:
        """The dimensions of the matrices."""
        return (*self.batch, *self.rows, *map(starred, self.rows))


@dataclass(frozen=True, eq=False)
class Gram:
    """The operands of the normal matrix of one core, and its independent factors."""

    core: Axis
    operands: tuple[Named, ...]
    factors: tuple[Factor, ...]
    size: Mapping[str, int]
    cores_end: int
    """Operands from here on are moments: factors made of them alone never change."""

    @property
    def direct(self) -> bool:
        """Whether every factor is small enough to be factorised."""
        return all(
            self._rows(factor) <= LARGEST and 8 * self._entries(factor) <= _LARGEST_BYTES
            for factor in self.factors
        )

    @property
    def flops(self) -> float:
        """What building and factorising costs."""
        total = 0.0
        for factor in self.factors:
            parts = tuple(self.operands[k][1] for k in factor.operands)
            used = {n for part in parts for n in part}
            sizes = tuple((n, s) for n, s in sorted(self._sizes.items()) if n in used)
            names = tuple(map(str, range(len(parts))))
            total += Contraction(names, parts, factor.output, sizes).order.flops
            once = 1.0 if len(self.factors) == 1 else 27.0  # Cholesky, eigenvalues
            total += once * self._rows(factor) * self._entries(factor)
        return total

    def matrix(self, factor: Factor) -> Tensor:
        """Contract one factor to `[*batch sizes, rows, rows]`."""
        tensor = einsum([self.operands[k] for k in factor.operands], factor.output)
        count, rows = len(factor.batch), self._rows(factor)
        return tensor.reshape(*tensor.shape[:count], rows, rows)

    @property
    def _sizes(self) -> dict[str, int]:
        return {n: s for tensor, axes in self.operands for n, s in zip(axes, tensor.shape)}

    def _rows(self, factor: Factor) -> int:
        return prod(self.size[n] for n in factor.rows)

    def _entries(self, factor: Factor) -> int:
        return self._rows(factor) ** 2 * prod(self.size[n] for n in factor.batch)


def gram(
    network: Network,
    cores: Mapping[str, Tensor],
    name: str,
    moments: Sequence[FoldedMoment],
    product: bool = False,
) -> Gram:
    """Return the normal matrix of core `name`; with `product`, moments in their product form."""
    whole = dense(network)
    core = network.equation.core(name).indices
    count = len(network.equation.output_indices)
    legs = {"outputs": whole.output[:count], "inputs": whole.output[count:]}
    env = [
        (_operand(n, axes, whole, cores), axes)
        for n, axes in zip(whole.names, whole.operands)
        if n != name
    ]
    elsewhere = {n for _, axes in env for n in axes}
    weights: list[Named] = []
    doubled = {n for axes in whole.operands for n in axes} - set(whole.output)
    for moment in moments:
        named = replace(moment, legs=legs[moment.side])
        if not moment.full:
            weights.append((named.tensor, named.legs))
        elif product:
            parts = product_form(named, core, elsewhere)
            weights += parts
            doubled |= {n for n in named.legs if any(starred(n) in axes for _, axes in parts)}
        else:
            weights.append((named.tensor, (*named.legs, *map(starred, named.legs))))
            doubled |= set(named.legs)
    copies = [(t, tuple(starred(n) if n in doubled else n for n in axes)) for t, axes in env]
    operands = (*env, *copies, *weights)
    mirrored = [(k, k + len(env)) for k in range(len(env))]
    size = dict(whole.sizes)
    return Gram(core, operands, _factors(core, operands, mirrored, doubled), size, 2 * len(env))


def _factors(
    core: Axis, operands: Sequence[Named], mirrored: list[tuple[int, int]], doubled: set[str]
) -> tuple[Factor, ...]:
    import networkx as nx

    batch = {n for n in core if n not in doubled}
    graph = nx.Graph()
    graph.add_nodes_from(range(len(operands)))
    graph.add_edges_from(mirrored)
    holders: dict[str, int] = {}
    for place, (_, axes) in enumerate(operands):
        for name in axes:
            if name not in batch:
                graph.add_edge(holders.setdefault(name, place), place)
    found = []
    for group in sorted(nx.connected_components(graph), key=min):
        held = {n for place in group for n in operands[place][1]}
        found.append(
            Factor(
                tuple(sorted(group)),
                tuple(n for n in core if n in batch and n in held),
                tuple(n for n in core if n in doubled and n in held),
            )
        )
    return tuple(found)


def _operand(name: str, axes: Axis, whole: Contraction, cores: Mapping[str, Tensor]) -> Tensor:
    if name in cores:
        return cores[name]
    example = next(iter(cores.values()))
    return torch.eye(whole.size[axes[0]], dtype=example.dtype, device=example.device)
