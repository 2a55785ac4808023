"""Normal equations of one core: `J^T (G (x) C) J`, as a Kronecker product of what hangs together.

The weight is linear in a core, `W = J(core)`. The Gram matrix of J under a metric is a contraction
of the other cores with their copies and the moments. Legs without a full moment are diagonal in it
(batches); operands that share no other index fall into independent factors. So a low-rank core
under an input moment has `(B^T B) (x) C`, a CP factor the Hadamard product of r x r Grams, and a
block tensor train a small matrix a block, without any of them being named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import networkx as nx
import torch
from torch import Tensor

from tnc.derive import Contraction, dense
from tnc.fit.marginal import FoldedMoment, product_form, starred
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Axis, Network

LARGEST = 2500  # rows of a matrix that is factorised
_LARGEST_BYTES = 1 << 30
_RIDGE = 1e-13


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
        named = FoldedMoment(moment.side, moment.tensor, legs[moment.side])
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
    return Gram(core, operands, _factors(core, operands, mirrored, doubled), size)


def _factors(
    core: Axis, operands: Sequence[Named], mirrored: list[tuple[int, int]], doubled: set[str]
) -> tuple[Factor, ...]:
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


class Inverse:
    """The regularised inverse of a normal matrix, applied to tensors with the core's dimensions.

    One factor: Cholesky with a relative ridge. Several: their eigenvectors diagonalise the
    Kronecker product at once. Directions below the ridge are damped, not amplified.
    """

    def __init__(self, normal: Gram) -> None:
        self._core = normal.core
        self._size = normal.size
        self._factors = normal.factors
        self._batch = tuple(
            n for n in self._core if not any(n in factor.rows for factor in normal.factors)
        )
        matrices = [normal.matrix(factor) for factor in self._factors]
        self._cholesky = _cholesky(matrices[0]) if len(matrices) == 1 else None
        if self._cholesky is None:
            self._eigen = [torch.linalg.eigh(matrix) for matrix in matrices]
            self._spread = self._reciprocal()

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return `H^-1 tensor`."""
        order = (*self._batch, *(n for factor in self._factors for n in factor.rows))
        rows = [f"#{k}" for k in range(len(self._factors))]
        shape = [self._size[n] for n in self._batch]
        shape += [prod(self._size[n] for n in factor.rows) for factor in self._factors]
        moved = tensor.permute([self._core.index(n) for n in order])
        full = moved.shape
        axes = (*self._batch, *rows)
        found = self._apply(moved.reshape(shape), axes, rows)
        back = [order.index(n) for n in self._core]
        return found.reshape(full).permute(back)

    def _apply(self, tensor: Tensor, axes: Axis, rows: list[str]) -> Tensor:
        if self._cholesky is not None:
            return self._by_cholesky(tensor, axes)
        for transposed in (True, False):
            for factor, (_, vectors), row in zip(self._factors, self._eigen, rows):
                pair = (row, "##") if transposed else ("##", row)
                to = tuple("##" if n == row else n for n in axes)
                tensor = einsum([(tensor, axes), (vectors, (*factor.batch, *pair))], to)
            if transposed:
                tensor = tensor * self._spread
        return tensor

    def _by_cholesky(self, tensor: Tensor, axes: Axis) -> Tensor:
        assert self._cholesky is not None
        held = self._factors[0].batch
        free = tuple(n for n in axes[:-1] if n not in held)
        order = (*held, axes[-1], *free)
        moved = tensor.permute([axes.index(n) for n in order])
        flat = moved.reshape(*moved.shape[: len(held) + 1], -1)
        solved = torch.cholesky_solve(flat, self._cholesky).reshape(moved.shape)
        return solved.permute([order.index(n) for n in axes])

    def _reciprocal(self) -> Tensor:
        """Return 1 / (product of eigenvalues + ridge) over batch and rows."""
        parts: list[Named] = [
            (values.clamp_min(0), (*factor.batch, f"#{k}"))
            for k, (factor, (values, _)) in enumerate(zip(self._factors, self._eigen))
        ]
        held = {n for _, axes in parts for n in axes}
        parts += [(torch.ones(self._size[n], dtype=parts[0][0].dtype), (n,))
                  for n in self._batch if n not in held]
        rows = tuple(f"#{k}" for k in range(len(self._factors)))
        product = einsum(parts, (*self._batch, *rows))
        floor = product.amax().clamp_min(1e-300) * _RIDGE
        return torch.where(product > floor, 1 / product.clamp_min(floor), torch.zeros_like(product))


def _cholesky(matrix: Tensor) -> Tensor | None:
    """Factorise with a ridge relative to each block's mean diagonal; None where that fails."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    top = diagonal.abs().amax(-1, keepdim=True)
    ridge = torch.where(top > 0, top * (_RIDGE * matrix.shape[-1] * 10), torch.ones_like(top))
    lower, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ridge.expand_as(diagonal)))
    return None if bool((info != 0).any()) else lower
