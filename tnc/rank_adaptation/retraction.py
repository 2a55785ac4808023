"""The step along the tangent space of a star's manifold, and back onto it by truncation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tnc.errors import FitError
from tnc.optim.moving import along
from tnc.rank_adaptation.star import Star, leading, matrix_of, rotated, shaped_as
from tnc.rank_adaptation.tree import rank_within, unfold


@dataclass(frozen=True)
class Retraction:
    """Cores in the star's gauge after a step, and what became of its coordinates.

    For each leaf, `turns[new, old]` are the inner products of the root's normalised slices, by
    which the coordinates of `K = U S` change, and `bases[new, old]` those of the leaf's columns, by
    which the root's change.
    """

    cores: dict[str, Tensor]
    turns: tuple[Tensor, ...]
    bases: tuple[Tensor, ...]


def retract(
    star: Star,
    cores: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    tolerance: float,
    bounds: Mapping[str, tuple[int, int]],
    where: str = "",
) -> Retraction:
    """Return the truncation of `W + sum_k P_k(moved_k)` from cores in the star's gauge.

    `moved` holds the change of every `K = U S` and of the root. The part of a leaf's change outside
    of its range enters the augmented root beside the old one; new-by-new blocks are zero. The
    truncation's error is at most `tolerance` of the norm, unless the upper of `bounds` is less.
    Raises FitError for changes that are not finite.
    """
    if not all(bool(change.isfinite().all()) for change in moved.values()):
        raise FitError(
            "the optimizer's step is not finite",
            where=where,
            hint="lower the learning rate, or clip gradients before the step",
        )
    root = cores[star.root]
    rows = [_rows(root, leaf.root_axis) for leaf in star.leaves]
    bases, slabs = [], []
    for leaf, along_rows in zip(star.leaves, rows):
        basis, change = _augmented(
            matrix_of(cores[leaf.core], leaf.axis), matrix_of(moved[leaf.core], leaf.axis)
        )
        bases.append(basis)
        slabs.append(change @ along_rows)
    whole = _assembled(star, root + moved[star.root], slabs)
    kept = _kept(star, whole, tolerance, bounds)
    found = dict(cores)
    for leaf, basis, turn in zip(star.leaves, bases, kept):
        whole = along(whole, leaf.root_axis, turn.T)
        found[leaf.core] = shaped_as(basis @ turn, cores[leaf.core], leaf.axis)
    found[star.root] = whole
    found = rotated(star, found)
    overlaps = [
        matrix_of(found[leaf.core], leaf.axis).T @ matrix_of(cores[leaf.core], leaf.axis)
        for leaf in star.leaves
    ]
    return Retraction(found, _turns(star, rows, root, found[star.root], overlaps), tuple(overlaps))


def _rows(root: Tensor, axis: int) -> Tensor:
    """Return the normalised slices `[bond, others]`, orthonormal however small they were."""
    slices = unfold(root, axis)
    norms = slices.norm(dim=1, keepdim=True)
    q, r = torch.linalg.qr((slices / torch.where(norms > 0, norms, 1.0)).T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    turned: Tensor = (q * signs).T
    return turned


def _augmented(basis: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of range(basis, change), and the new part of the change in it."""
    for _ in range(2):
        change = change - basis @ (basis.T @ change)
    rank = basis.shape[1]
    q, _ = torch.linalg.qr(torch.cat([basis, change], dim=1))
    fresh = q[:, rank:]
    return torch.cat([basis, fresh], dim=1), fresh.T @ change


def _assembled(star: Star, root: Tensor, slabs: list[Tensor]) -> Tensor:
    """Return the augmented root: the old block, and one slab beside it along every bond."""
    size = list(root.shape)
    for leaf, slab in zip(star.leaves, slabs):
        size[leaf.root_axis] += slab.shape[0]
    whole = root.new_zeros(size)
    block = [slice(0, n) for n in root.shape]
    whole[tuple(block)] = root
    for leaf, slab in zip(star.leaves, slabs):
        axis = leaf.root_axis
        others = [n for k, n in enumerate(root.shape) if k != axis]
        place = list(block)
        place[axis] = slice(root.shape[axis], None)
        whole[tuple(place)] = slab.reshape(-1, *others).movedim(0, axis)
    return whole


def _kept(
    star: Star, whole: Tensor, tolerance: float, bounds: Mapping[str, tuple[int, int]]
) -> list[Tensor]:
    """Return for every bond the leading directions `[augmented, rank]` that are kept."""
    limit = tolerance * float(whole.norm()) / star.cuts**0.5
    found = []
    for leaf in star.leaves:
        basis, spectrum = leading(whole, leaf.root_axis)
        low, high = bounds[leaf.bond]
        rank = max(low, min(rank_within(spectrum, limit), high))
        found.append(basis[:, : max(1, min(rank, basis.shape[1]))])
    return found


def _turns(
    star: Star, rows: list[Tensor], before: Tensor, after: Tensor, overlaps: list[Tensor]
) -> tuple[Tensor, ...]:
    """Return the inner products of the normalised slices, new by old, along every bond."""
    found = []
    for number, (leaf, old) in enumerate(zip(star.leaves, rows)):
        axis = leaf.root_axis
        others = [n for k, n in enumerate(before.shape) if k != axis]
        tensor = old.reshape(-1, *others).movedim(0, axis)
        for other, overlap in zip(star.leaves, overlaps):
            if other.bond != star.leaves[number].bond:
                tensor = along(tensor, other.root_axis, overlap)
        found.append(_rows(after, axis) @ unfold(tensor, axis).T)
    return tuple(found)
