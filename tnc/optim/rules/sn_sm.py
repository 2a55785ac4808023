"""Subset-norm step sizes and momentum in a subspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt, prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count
from tnc.optim.projections import (
    down,
    is_right,
    projected_shape,
    refuses_projection,
    top_subspace,
    up,
)
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments


@rules.register("sn-sm")
class SubsetNormSubspaceMomentum(Moments, Rule):
    """`W -= lr (up(m) + G - up(g)) / (sqrt(v_hat) + eps)`, with `g` G in a subspace.

    `m <- b1 m + (1 - b1) g`: momentum in the subspace, plain steps outside of it. v is an average
    of sums of `G^2` over subsets of k consecutive entries, k a divisor of their number N: the one
    nearest to `subset_size`, by default to `sqrt(N) / 2`; k = 1 is Adam's. v is debiased, m is not.
    Every `update_every` steps the subspace is taken anew from the gradient and m starts at zero,
    with that gradient in it. `projection` is 'svd' (leading singular vectors) or 'columns' (those
    of largest norm; rows of a wide matrix), which keeps r numbers in the place of r n.

    State of a matrix (m, n), m at least n: `momentum` (m, r); `subset_sq` (N / k); `projector`
    (r, n) or `indices` (r). (Nguyen and Nguyen, Subset-Norm and Subspace-Momentum, ICML 2025,
    algorithm 3.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "momentum": Kind.OPAQUE,
        "exp_avg_sq": Kind.DIAGONAL,  # what `read` makes of the subsets
        "subset_sq": Kind.DIAGONAL,
        "projector": Kind.OPAQUE,
        "indices": Kind.OPAQUE,
        "taken": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1 - group["betas"][1] ** float(state["step"])
    }

    rank: Count = 128
    update_every: Count = 200
    subset_size: Count | None = None
    projection: Literal["svd", "columns"] = "svd"

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        matrix = as_matrix(weight)
        small = projected_shape((matrix.shape[0], matrix.shape[1]), group["rank"])
        right = is_right(matrix)
        rank, side = small[right], matrix.shape[right]
        subsets = weight.numel() // nearest_divisor(weight.numel(), group["subset_size"])
        found: dict[str, Any] = {
            "momentum": weight.new_zeros(small),
            "subset_sq": weight.new_zeros(subsets),
        }
        if group["projection"] == "svd":
            found["projector"] = weight.new_zeros(rank, side)
        else:
            found["indices"] = torch.arange(rank, dtype=torch.int32, device=weight.device)
        return found | {"taken": 0, "right": right}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, right = as_matrix(gradient), state["right"]
        first, second = group["betas"]
        steps, momentum, square = float(state["step"]), state["momentum"], state["subset_sq"]
        if not state["taken"] or (int(steps) - 1) % group["update_every"] == 0:
            _take(matrix, state, right)
            momentum.zero_()
            state["taken"] = int(steps)
        squares = gradient.square().reshape(len(square), -1).sum(1)
        square.lerp_(squares, 1 - second)
        projected = _down(matrix, state, right)
        momentum.lerp_(projected, 1 - first)
        change = _changed(matrix, momentum - projected, state, right)
        root = square.sqrt().mul_((1 - second**steps) ** -0.5).add_(group["eps"])
        self.decay_(weight, state, group)
        change = change.reshape(len(square), -1) / root[:, None]
        weight.add_(change.reshape(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = projected_shape((m, n), group["rank"])
        kept = min(small) * (min(m, n) if group["projection"] == "svd" else 1)
        subsets = m * n // nearest_divisor(m * n, group["subset_size"])
        return 4 * (prod(small) + kept + subsets)

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "subset_sq" not in state:
            return {}
        square = state["subset_sq"]
        size = weight.numel() // len(square)
        mean = (square / size)[:, None].expand(len(square), size)
        return {"exp_avg_sq": mean.reshape(weight.shape)}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if "exp_avg_sq" not in moved:
            return {}
        wide = torch.promote_types(weight.dtype, torch.float32)
        size = nearest_divisor(weight.numel(), group["subset_size"])
        return {"subset_sq": moved["exp_avg_sq"].to(wide).reshape(-1, size).sum(1)}


def nearest_divisor(entries: int, wanted: int | None) -> int:
    """Return the divisor of a number that is nearest to one, by default to half its root.

    >>> nearest_divisor(4096, None), nearest_divisor(240, None), nearest_divisor(240, 1)
    (32, 8, 1)
    """
    target = wanted or max(1.0, entries**0.5 / 2)
    small = [k for k in range(1, isqrt(entries) + 1) if entries % k == 0]
    return min(small + [entries // k for k in small], key=lambda k: (abs(k - target), k))


def _take(matrix: Tensor, state: dict[str, Any], right: int) -> None:
    if "projector" in state:
        projector = state["projector"]
        projector.copy_(top_subspace(matrix, len(projector), right))
        return
    norms = matrix.square().sum(1 - right)
    found = norms.topk(len(state["indices"])).indices
    state["indices"].copy_(found.sort().values)


def _down(matrix: Tensor, state: dict[str, Any], right: int) -> Tensor:
    if "projector" in state:
        return down(matrix, state["projector"], right)
    return matrix.index_select(right, state["indices"])


def _changed(matrix: Tensor, change: Tensor, state: dict[str, Any], right: int) -> Tensor:
    """Return the gradient with its part in the subspace changed."""
    if "projector" in state:
        return matrix + up(change, state["projector"], right)
    return matrix.index_add(right, state["indices"], change)
