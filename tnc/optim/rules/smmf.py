"""SMMF: both moments as square matrices of rank one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isqrt, prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind, State
from tnc.optim.options import NonNegative, Share
from tnc.optim.rule import Rule, rules
from tnc.optim.signs import pack_signs, packed_size, signed


@rules.register("smmf")
class Smmf(Rule):
    """Adam whose moments lie between steps as outer products, the first with its signs.

    A parameter of N entries is read as `(a, b)`, `a b = N`, nearest to square. With
    `b1 = beta growth^(t - 1)` and `b2 = 1 - t^-decay_rate`: `M <- b1 M + (1 - b1) G`,
    `V <- b2 V + (1 - b2) G^2`, `W -= lr M / (sqrt(V) + eps)`; then `|M|` and V become the products
    of their row and column sums over their whole sum, which keeps those sums.

    State: `mean_rows`, `square_rows` (a), `mean_columns`, `square_columns` (b), and `signs`, a bit
    an entry. (Park and Lee, SMMF: Square-Matricized Momentum Factorization, AAAI 2025, algorithms 1
    to 4; decay_rate .5 for convolutions, .8 for transformers.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,  # what `read` makes of the mean's factors and signs
        "exp_avg_sq": Kind.DIAGONAL,
        "mean_rows": Kind.COVECTOR,
        "mean_columns": Kind.COVECTOR,
        "signs": Kind.COVECTOR,
        "square_rows": Kind.DIAGONAL,
        "square_columns": Kind.DIAGONAL,
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "exp_avg_sq": lambda state, group: 1.0  # the first gradient replaces the start
    }

    beta: Share = 0.9
    growth: Share = 0.999
    decay_rate: NonNegative = 0.8
    eps: NonNegative = 1e-8

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        a, b = square_shape(weight.numel())
        sizes = {"mean_rows": a, "mean_columns": b, "square_rows": a, "square_columns": b}
        found: dict[str, Any] = {slot: weight.new_zeros(size) for slot, size in sizes.items()}
        count = packed_size(weight.numel())
        return found | {"signs": torch.zeros(count, dtype=torch.uint8, device=weight.device)}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        steps = float(state["step"])
        first = group["beta"] * group["growth"] ** (steps - 1)
        second = 1 - steps ** -group["decay_rate"]
        mean, square = _opened(state)
        matrix = gradient.reshape(mean.shape)
        mean.lerp_(matrix, 1 - first)
        square.mul_(second).addcmul_(matrix, matrix, value=1 - second)
        state.update(_closed(mean, square))
        self.decay_(weight, state, group)
        change = mean.div_(square.sqrt_().add_(group["eps"]))
        weight.add_(change.view(weight.shape), alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * 2 * sum(square_shape(prod(shape))) + packed_size(prod(shape))

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        if "signs" not in state:
            return {}
        mean, square = _opened(state)
        return {"exp_avg": mean.view(weight.shape), "exp_avg_sq": square.view(weight.shape)}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        if set(moved) != {"exp_avg", "exp_avg_sq"}:
            return {}
        shape = square_shape(weight.numel())
        wide = torch.promote_types(weight.dtype, torch.float32)
        mean, square = (moved[slot].to(wide).reshape(shape) for slot in ("exp_avg", "exp_avg_sq"))
        return _closed(mean, square)


def square_shape(entries: int) -> tuple[int, int]:
    """Return the factors of a number that are nearest to each other, the larger first.

    >>> square_shape(4096), square_shape(96), square_shape(7)
    ((64, 64), (12, 8), (7, 1))
    """
    small = next((k for k in range(isqrt(entries), 0, -1) if entries % k == 0), 1)
    return entries // small, small


def rank_one(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of a non-negative matrix whose product has its row and column sums.

    The shorter one is normalised to sum 1. Exact on matrices of rank one.

    >>> import torch
    >>> rank_one(torch.tensor([[1.0, 3.0], [2.0, 6.0], [0.0, 0.0]]))
    (tensor([4., 8., 0.]), tensor([0.2500, 0.7500]))
    """
    rows, columns = matrix.sum(1), matrix.sum(0)
    scaled = rows if len(rows) < len(columns) else columns
    scaled.div_(scaled.sum().clamp_min(torch.finfo(matrix.dtype).tiny))
    return rows, columns


def _opened(state: State) -> tuple[Tensor, Tensor]:
    mean = torch.outer(state["mean_rows"], state["mean_columns"])
    square = torch.outer(state["square_rows"], state["square_columns"])
    return signed(mean, state["signs"]), square


def _closed(mean: Tensor, square: Tensor) -> dict[str, Any]:
    mean_rows, mean_columns = rank_one(mean.abs())
    square_rows, square_columns = rank_one(square)
    return {
        "mean_rows": mean_rows,
        "mean_columns": mean_columns,
        "square_rows": square_rows,
        "square_columns": square_columns,
        "signs": pack_signs(mean),
    }
