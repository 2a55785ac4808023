"""Shampoo: a preconditioner for every mode of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tnc.optim.blocks import blocks_of
from tnc.optim.kinds import Group, Kind, State
from tnc.optim.options import Count
from tnc.optim.roots import Roots, inverse_root
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments

MODES = 8


def _held(state: State, group: Group) -> float:
    second, steps = float(group["betas"][1]), float(state["step"])
    return steps if second == 1 else 1 - second**steps


def _graft_held(state: State, group: Group) -> float:
    return float(state["step"]) if group["graft"] == "adagrad" else _held(state, group)


@rules.register("shampoo")
class Shampoo(Moments, Rule):
    """`L_k <- b2 L_k + w G_(k) G_(k)^T` for each mode k of K; `P = m L_1^(-1/2K) ... L_K^(-1/2K)`.

    `w` is 1 where b2 is 1 (sums, as in the paper), else `1 - b2`, and L is debiased; `m` is the
    debiased mean gradient of decay b1. Roots are taken every `update_every` steps, with `eps` of
    the mean eigenvalue as ridge, by `roots`: 'eigh' or 'newton'. Axes longer than `block` are cut
    into equal blocks that are preconditioned each by itself; axes of length 1 do not count. `graft`
    gives every block the length of another method's step: 'sgd' m, 'adagrad' or 'adam'
    `m / (sqrt(v) + 1e-8)`; then `W <- (1 - lr wd) W - lr P`.

    A vector is full-matrix AdaGrad. State: `exp_avg` unless b1 is 0, `graft_sq` if the graft has a
    second moment, both as large as the parameter; for every mode and block of size d `gram_k` and
    `root_k` (d, d). (Gupta et al., Shampoo, ICML 2018, algorithm 2; blocks and grafting as in Anil
    et al., Scalable Second Order Optimization, 2020.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "graft_sq": Kind.DIAGONAL,
        "stale": Kind.OPAQUE,
        **{f"gram_{mode}": Kind.GRAM for mode in range(MODES)},
        **{f"root_{mode}": Kind.OPAQUE for mode in range(MODES)},
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {
        "graft_sq": _graft_held,
        "gram_0": _held,
    }

    eps = 1e-6
    update_every: Count = 10
    block: Count = 1024
    graft: Literal["none", "sgd", "adagrad", "adam"] = "adam"
    roots: Roots = "eigh"

    def refuses(self, weight: Tensor, group: Group) -> str:
        count = len(blocks_of(tuple(weight.shape), group["block"]).sizes)
        return f"it has {count} axes, more than {MODES}" if count > MODES else ""

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        blocks = blocks_of(tuple(weight.shape), group["block"])
        found: dict[str, Any] = {"stale": 1}
        if group["betas"][0] > 0:
            found["exp_avg"] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        if group["graft"] in ("adagrad", "adam"):
            found["graft_sq"] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        for mode, size in enumerate(blocks.sizes):
            for slot in (f"gram_{mode}", f"root_{mode}"):
                found[slot] = weight.new_zeros(blocks.count, size, size)
        return found

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        blocks = blocks_of(tuple(weight.shape), group["block"])
        first, second = group["betas"]
        steps, share = int(state["step"]), 1.0 if second == 1 else 1 - second
        cut = blocks.cut(gradient)
        for mode in blocks.modes:
            gram = state[f"gram_{mode}"]
            gram.mul_(second).add_(blocks.gram(cut, mode), alpha=share)
        if state["stale"] or (steps - 1) % group["update_every"] == 0:
            self._take_roots(state, group, len(blocks.sizes))
        mean = gradient
        if first > 0:
            mean = state["exp_avg"].lerp_(gradient, 1 - first) / (1 - first**steps)
        roots = {mode: state[f"root_{mode}"] for mode in blocks.modes}
        found = blocks.on_modes(blocks.cut(mean), roots)
        if group["graft"] != "none":
            wanted = _lengths(blocks.cut(self._grafted(gradient, mean, state, group)))
            shape = (-1, *([1] * len(blocks.sizes)))
            found.mul_((wanted / _lengths(found).clamp_min(1e-30)).reshape(shape))
        self.decay_(weight, state, group)
        weight.add_(blocks.join(found), alpha=-group["lr"])

    def _take_roots(self, state: dict[str, Any], group: Group, modes: int) -> None:
        gathered = 1.0 if group["betas"][1] == 1 else _held(state, group)
        for mode in range(modes):
            gram = state[f"gram_{mode}"] / gathered
            found = inverse_root(gram, 2 * modes, group["eps"], group["roots"])
            state[f"root_{mode}"].copy_(found)
        state["stale"] = 0

    def _grafted(
        self, gradient: Tensor, mean: Tensor, state: dict[str, Any], group: Group
    ) -> Tensor:
        if group["graft"] == "sgd":
            return mean
        square, second = state["graft_sq"], group["betas"][1]
        if group["graft"] == "adagrad" or second == 1:
            square.addcmul_(gradient, gradient)
            grown: Tensor = mean / square.sqrt().add_(1e-8)
            return grown
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        found: Tensor = mean / (square / _held(state, group)).sqrt_().add_(1e-8)
        return found

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        blocks = blocks_of(shape, group["block"])
        vectors: int = (group["betas"][0] > 0) + (group["graft"] in ("adagrad", "adam"))
        squares = blocks.count * sum(size**2 for size in blocks.sizes)
        return 4 * (prod(shape) * vectors + 2 * squares)

    def grams(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        axes = blocks_of(shape, group["block"]).axes
        return {f"gram_{mode}": (axis,) for mode, axis in enumerate(axes)}

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """Return the momentum, the graft's second moment and the whole axes' Gram matrices."""
        blocks = blocks_of(tuple(weight.shape), group["block"])
        found = {slot: state[slot] for slot in ("exp_avg", "graft_sq") if slot in state}
        for mode in blocks.modes if blocks.axes else ():
            found[f"gram_{mode}"] = blocks.whole_gram(state[f"gram_{mode}"], mode)
        return found

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        """Return slots with Gram matrices in blocks; one not moved comes from `graft_sq`."""
        blocks = blocks_of(tuple(weight.shape), group["block"])
        found = {slot: moved[slot] for slot in ("exp_avg", "graft_sq") if slot in moved}
        found["stale"] = 1
        known = [value for slot, value in moved.items() if slot.startswith("gram_")]
        for mode, axis in enumerate(blocks.axes):
            gram = moved.get(f"gram_{mode}")
            if gram is None and "graft_sq" in moved:
                rest = [k for k in range(weight.dim()) if k != axis]
                gram = torch.diag(moved["graft_sq"].sum(rest) if rest else moved["graft_sq"])
            elif gram is None and known:
                size = weight.shape[axis]
                gram = torch.eye(size).to(known[0]) * (known[0].trace() / size)
            if gram is not None:
                found[f"gram_{mode}"] = blocks.split_gram(gram, mode).contiguous()
        return found


def _lengths(blocks: Tensor) -> Tensor:
    found: Tensor = blocks.flatten(1).norm(dim=1)
    return found
