"""FRUGAL: Adam in a part of each parameter, a rule without state in the rest."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count, NonNegative, Share
from tnc.optim.projections import (
    adam_direction,
    down,
    draws,
    due,
    is_right,
    random_subspace,
    top_subspace,
    up,
)
from tnc.optim.rule import STEP, Rule, rules
from tnc.optim.shared_options import Moments

Subspaces = Literal["columns", "blocks", "svd", "random"]
SUBSPACES: tuple[Subspaces, ...] = get_args(Subspaces)


@rules.register("frugal")
class Frugal(Moments, Rule):
    """`g = down(G)`; `W <- (1 - lr wd) W - lr up(Adam(g)) - lr rest_scale f(G - up(g))`.

    f is 'sign', 'sgd' (as it is) or 'none'. `density` of each parameter is in the subspace, which
    is drawn anew every `update_every` steps; Adam starts anew with it, its step count too.
    Subspaces: 'columns' of the shorter side, drawn evenly; 'blocks', one run of entries of a
    parameter (the paper draws whole parameters, so that memory changes from draw to draw); 'svd',
    leading singular vectors; 'random', orthonormal. A parameter of one axis is cut in blocks. With
    density 1 in one block this is AdamW, with density 0 signSGD. Differences that are rounding of
    `G - up(g)` count as zero: their signs would be steps of lr.

    State of a matrix (m, n), m at least n, `r = density n`: `exp_avg` and `exp_avg_sq` (m, r);
    `index` (r) of columns, `projector` (r, n) of vectors; of blocks both moments (density m n) and
    a number. (Zmushko et al., FRUGAL, ICML 2025.)
    """

    random: ClassVar[bool] = True
    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "index": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "offset": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }

    density: Share = 0.25
    update_every: Count = 200
    subspace: Subspaces = "columns"
    rest: Literal["sign", "sgd", "none"] = "sign"
    rest_scale: NonNegative = 1.0
    seed: int = 0

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        kind, held = held_shape(tuple(weight.shape), group)
        found: dict[str, Any] = {
            "exp_avg": weight.new_zeros(held),
            "exp_avg_sq": weight.new_zeros(held),
        }
        if kind == "blocks":
            return found | {"offset": 0}
        right = is_right(as_matrix(weight))
        if kind == "columns":
            index = torch.arange(held[right], dtype=torch.int32, device=weight.device)
            return found | {"index": index, "right": right}
        return found | {
            "projector": weight.new_zeros(held[right], as_matrix(weight).shape[right]),
            "right": right,
        }

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        if due(state, group):
            self._draw(gradient, state, group)
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
        small = inside(gradient, state)
        since = (int(state[STEP]) - 1) % group["update_every"] + 1
        local = {STEP: since, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        direction = outside(adam_direction(small, local, group), gradient, state)
        self.decay_(weight, state, group)
        weight.add_(direction, alpha=-group["lr"])
        if group["rest"] != "none" and group["rest_scale"]:
            rest = remainder(gradient, small, state)
            rest = rest.sign_() if group["rest"] == "sign" else rest
            weight.add_(rest, alpha=-group["lr"] * group["rest_scale"])

    def _draw(self, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        """Draw the subspace anew."""
        generator = draws(state)
        if "offset" in state:
            count, whole = state["exp_avg"].numel(), gradient.numel()
            runs = -(-whole // count) if count else 1
            picked = int(torch.randint(runs, (), generator=generator))
            state["offset"] = min(picked * count, whole - count)
        elif "index" in state:
            size = as_matrix(gradient).shape[state["right"]]
            chosen = torch.randperm(size, generator=generator)[: len(state["index"])]
            state["index"] = chosen.sort().values.to(state["index"])
        elif len(state["projector"]):
            rank, size = state["projector"].shape
            if group["subspace"] == "random":
                state["projector"] = random_subspace(size, rank, generator, state["projector"])
            else:
                state["projector"] = top_subspace(as_matrix(gradient), rank, state["right"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        kind, held = held_shape(shape, group)
        if kind == "blocks":
            return 8 * prod(held)
        m, n = matrix_shape(shape)
        rank = held[int(m >= n)]
        return 8 * prod(held) + 4 * rank * (1 if kind == "columns" else min(m, n))


def held_shape(shape: tuple[int, ...], group: Group) -> tuple[str, tuple[int, ...]]:
    """Return the kind of subspace of a parameter and the shape of its moments."""
    density = group["density"]
    if len(shape) < 2 or group["subspace"] == "blocks":
        return "blocks", (_part(prod(shape), density),)
    m, n = matrix_shape(shape)
    small = (m, _part(n, density)) if m >= n else (_part(m, density), n)
    return str(group["subspace"]), small


def inside(gradient: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return the part of a gradient that is in the subspace."""
    if "offset" in state:
        start, count = state["offset"], state["exp_avg"].numel()
        return gradient.reshape(-1)[start : start + count]
    matrix, right = as_matrix(gradient), state["right"]
    if "index" in state:
        return matrix.index_select(right, state["index"])
    return down(matrix, state["projector"], right)


def outside(small: Tensor, like: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return a parameter's change from that of its part: the transpose of `inside`."""
    if "offset" in state:
        found = like.new_zeros(like.numel())
        found[state["offset"] : state["offset"] + small.numel()] = small
        return found.view(like.shape)
    right = state["right"]
    if "index" in state:
        whole = like.new_zeros(as_matrix(like).shape)
        return whole.index_copy_(right, state["index"].long(), small).view(like.shape)
    return up(small, state["projector"], right).reshape(like.shape)


def remainder(gradient: Tensor, small: Tensor, state: Mapping[str, Any]) -> Tensor:
    """Return `G - up(down(G))`, with zeros where it is rounding."""
    rest = gradient - outside(small, gradient, state)
    if "projector" not in state:
        return rest
    rounding = 8 * state["projector"].shape[1] ** 0.5 * torch.finfo(gradient.dtype).eps
    noise = rounding * gradient.abs().amax()
    return rest.masked_fill_(rest.abs() <= noise, 0.0)


def _part(size: int, density: float) -> int:
    return min(size, max(1, round(density * size))) if density > 0 else 0
