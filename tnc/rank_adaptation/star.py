"""Stars: one root core on which all others, the leaves, hang by one bond each.

Low rank, Tucker and chains of three cores are stars. In the star's gauge every leaf is orthonormal
towards its bond, and the slices of the root along a bond are orthogonal, with the singular values
of the weight over that cut as their norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from torch import Tensor

from tnc.derive.cut import cut
from tnc.net import Network
from tnc.optim.moving import along
from tnc.rank_adaptation.tree import ends, unfold


@dataclass(frozen=True)
class Leaf:
    """A leaf, its bond, and the dimension of that bond in the leaf and in the root."""

    core: str
    bond: str
    axis: int
    root_axis: int


@dataclass(frozen=True)
class Star:
    """The root and its leaves; `cuts` is the number of different ways the bonds part the legs."""

    root: str
    leaves: tuple[Leaf, ...]
    cuts: int

    @cached_property
    def bonds(self) -> tuple[str, ...]:
        """Bonds in the order of the leaves."""
        return tuple(leaf.bond for leaf in self.leaves)


@lru_cache(maxsize=4096)
def star_of(network: Network) -> Star | None:
    """Return the star of a tree, or None. Of two cores the one with more legs is the root."""
    equation = network.equation

    def carries(name: str) -> int:
        axes = equation.core(name).indices
        return prod(network.size[n] for n in axes if n not in equation.bonds)

    joined = [ends(network, bond) for bond in equation.bonds]
    roots = [c.name for c in equation.cores if all(c.name in pair for pair in joined)]
    if not roots:
        return None
    root = max(reversed(roots), key=carries)
    leaves = []
    for core in equation.cores:
        if core.name != root:
            (bond,) = (n for n in core.indices if n in equation.bonds)
            axes = (core.indices.index(bond), equation.core(root).indices.index(bond))
            leaves.append(Leaf(core.name, bond, *axes))
    sides = set()
    for leaf in leaves:
        parted = cut(equation, leaf.bond)
        assert parted is not None  # a tree
        sides.add(frozenset((frozenset(parted.left), frozenset(parted.right))))
    return Star(root, tuple(leaves), len(sides))


def matrix_of(tensor: Tensor, axis: int) -> Tensor:
    """Return a leaf as `[legs, bond]`."""
    return unfold(tensor, axis).T


def shaped_as(matrix: Tensor, like: Tensor, axis: int) -> Tensor:
    """Return a leaf from `[legs, bond]`, its bond at `axis` as in `like`, of any size."""
    legs = [size for k, size in enumerate(like.shape) if k != axis]
    return matrix.T.reshape(-1, *legs).movedim(0, axis)


def leading(root: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return left singular vectors and singular values of an unfolding, `[size, size]`, `[size]`.

    By the Gram matrix in float64 where the tensor has less precision: its eigenvalues are then as
    accurate as an SVD in float32 would be, at a fraction of the time.
    """
    matrix = unfold(root, axis)
    if matrix.dtype == torch.float64:
        u, s, _ = torch.linalg.svd(matrix, full_matrices=matrix.shape[0] > matrix.shape[1])
        return u, torch.nn.functional.pad(s, (0, len(u) - len(s)))
    matrix = matrix.double()
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return vectors.flip(1).to(root.dtype), values.flip(0).clamp_min(0).sqrt().to(root.dtype)


def in_gauge(star: Star, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return cores of the same weight in the star's gauge; bonds beyond full rank shrink to it."""
    found = dict(cores)
    for leaf in star.leaves:
        q, r = torch.linalg.qr(matrix_of(found[leaf.core], leaf.axis))
        found[leaf.core] = shaped_as(q, found[leaf.core], leaf.axis)
        found[star.root] = along(found[star.root], leaf.root_axis, r)
    return rotated(star, found)


def rotated(star: Star, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the star's gauge of cores whose leaves are orthonormal already."""
    found, root = dict(cores), cores[star.root]
    for leaf in star.leaves:
        rest = root.numel() // root.shape[leaf.root_axis]
        basis, _ = leading(root, leaf.root_axis)
        basis = basis[:, : min(basis.shape[0], rest)]
        turned = matrix_of(found[leaf.core], leaf.axis) @ basis
        found[leaf.core] = shaped_as(turned, found[leaf.core], leaf.axis)
        found[star.root] = along(found[star.root], leaf.root_axis, basis.T)
    return found


def spectra(star: Star, root: Tensor) -> list[Tensor]:
    """Return the norms of the root's slices along every bond."""
    return [unfold(root, leaf.root_axis).norm(dim=1) for leaf in star.leaves]
