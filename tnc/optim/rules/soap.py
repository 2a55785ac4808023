"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.blocks import Blocks, blocks_of
from tnc.optim.kinds import Group, Kind, State
from tnc.optim.options import Count, Share
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Moments

MODES = 8


def _held(state: State, group: Group) -> float:
    return float(1 - group["betas"][1] ** max(float(state["step"]) - 1, 0))


@rules.register("soap")
class Soap(Moments, Rule):
    """Adam on `g = G Q_1 ... Q_K`, Q_k the eigenvectors of `L_k <- b L_k + (1 - b) G_(k) G_(k)^T`.

    `W <- W - lr Q m / (sqrt(v) + eps)` with Adam's debiasing, then `W <- (1 - lr wd) W`. Every
    `update_every` steps, L_k being sorted by the eigenvalues that Q_k gives, `Q_k <- qr(L_k Q_k)`:
    m is rotated to the new basis, v is sorted alone, as in the paper. The first step opens the
    bases and changes nothing. Axes longer than `largest`, or of length 1, are not rotated, nor are
    vectors unless `vectors` is set. With a basis that never changes this is Adam on the rotated
    parameter.

    State: `exp_avg` and `exp_avg_sq`, as large as the parameter, in the rotated basis; `gram_k` and
    `basis_k` (d, d) for every rotated axis of length d. (Vyas et al., SOAP, ICLR 2025, algorithms 3
    and 4.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.COVECTOR,
        "exp_avg_sq": Kind.DIAGONAL,
        **{f"gram_{mode}": Kind.GRAM for mode in range(MODES)},
        **{f"basis_{mode}": Kind.OPAQUE for mode in range(MODES)},
    }
    holds: ClassVar[Mapping[str, Callable[[State, Group], float]]] = {"exp_avg_sq": _held}

    lr = 3e-3
    betas = (0.95, 0.95)
    beta: Share = 0.95
    weight_decay = 0.01
    update_every: Count = 10
    largest: int = 10000
    vectors: bool = False

    def refuses(self, weight: Tensor, group: Group) -> str:
        count = len(_blocks(tuple(weight.shape)).sizes)
        return f"it has {count} axes, more than {MODES}" if count > MODES else ""

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        found: dict[str, Any] = {
            slot: torch.zeros_like(weight, memory_format=torch.contiguous_format)
            for slot in ("exp_avg", "exp_avg_sq")
        }
        for mode, size in _rotated(tuple(weight.shape), group).items():
            found[f"gram_{mode}"] = weight.new_zeros(size, size)
            found[f"basis_{mode}"] = weight.new_zeros(size, size)
        return found

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        shape = tuple(weight.shape)
        modes, steps = list(_rotated(shape, group)), int(state["step"]) - 1
        if steps > 0:
            self._adam(weight, gradient, state, group, modes, steps)
        blocks = _blocks(shape)
        cut = blocks.cut(gradient)
        for mode in modes:
            state[f"gram_{mode}"].lerp_(blocks.gram(cut, mode)[0], 1 - group["beta"])
        if steps == 0:
            for mode in modes:
                state[f"basis_{mode}"].copy_(eigenbasis(state[f"gram_{mode}"])[1])
        elif steps % group["update_every"] == 0:
            self._turn(shape, state, modes)

    def _adam(
        self,
        weight: Tensor,
        gradient: Tensor,
        state: dict[str, Any],
        group: Group,
        modes: list[int],
        steps: int,
    ) -> None:
        first, second = group["betas"]
        rotated = _turned(gradient, state, modes)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(rotated, 1 - first)
        square.mul_(second).addcmul_(rotated, rotated, value=1 - second)
        direction = mean / square.sqrt().add_(group["eps"])
        size = group["lr"] * (1 - second**steps) ** 0.5 / (1 - first**steps)
        weight.add_(_turned(direction, state, modes, back=True), alpha=-size)
        self.decay_(weight, state, group)

    def _turn(self, shape: tuple[int, ...], state: dict[str, Any], modes: list[int]) -> None:
        """Take one power iteration of every basis; rotate m, sort v."""
        mean = _turned(state["exp_avg"], state, modes, back=True)
        axes = _blocks(shape).axes
        for mode in modes:
            basis = state[f"basis_{mode}"]
            product = state[f"gram_{mode}"] @ basis
            order = (product * basis).sum(0).argsort(descending=True)
            state["exp_avg_sq"].copy_(state["exp_avg_sq"].index_select(axes[mode], order))
            basis.copy_(torch.linalg.qr(product[:, order]).Q)
        state["exp_avg"].copy_(_turned(mean, state, modes))

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        squares = sum(size**2 for size in _rotated(shape, group).values())
        return 4 * (2 * prod(shape) + 2 * squares)

    def grams(self, shape: tuple[int, ...], group: Group) -> dict[str, tuple[int, ...]]:
        axes = _blocks(shape).axes
        return {f"gram_{mode}": (axes[mode],) for mode in _rotated(shape, group)}

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """Return the moments turned back, v as the diagonal of what it is in the basis."""
        modes = list(_rotated(tuple(weight.shape), group))
        found = {
            "exp_avg": _turned(state["exp_avg"], state, modes, back=True),
            "exp_avg_sq": _turned(state["exp_avg_sq"], state, modes, back=True, squared=True),
        }
        return found | {f"gram_{mode}": state[f"gram_{mode}"] for mode in modes}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        """Return slots in the bases of the moved Gram matrices.

        There v is the product of their eigenvalues, of the sum that moved: the Kronecker model.
        Where none moved, bases are those of v's own sums, and v is sorted.
        """
        shape = tuple(weight.shape)
        found: dict[str, Any] = {}
        values: dict[int, Tensor] = {}
        axes, square = _blocks(shape).axes, moved["exp_avg_sq"]
        for mode in _rotated(shape, group):
            gram = moved.get(f"gram_{mode}")
            if gram is None:
                rest = [k for k in range(weight.dim()) if k != axes[mode]]
                gram = torch.diag(square.sum(rest) if rest else square)
            else:
                values[mode], _ = eigenbasis(gram)
            found[f"gram_{mode}"] = gram.contiguous()
            found[f"basis_{mode}"] = eigenbasis(gram)[1].contiguous()
        modes = list(_rotated(shape, group))
        found["exp_avg"] = _turned(moved["exp_avg"], found, modes).contiguous()
        turned = _turned(square, found, modes, squared=True)
        if values and len(values) == len(modes) == len(axes):
            turned = torch.ones_like(square)
            for mode, sizes in values.items():
                turned = turned * sizes.reshape(
                    [-1 if k == axes[mode] else 1 for k in range(len(shape))]
                )
            turned = turned * (square.sum() / turned.sum().clamp_min(1e-38))
        found["exp_avg_sq"] = turned.contiguous()
        return found


def eigenbasis(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a Gram matrix, falling, and their vectors in columns."""
    values, vectors = torch.linalg.eigh(gram.double())
    return values.flip(-1).clamp_min(0).to(gram.dtype), vectors.flip(-1).to(gram.dtype)


def _blocks(shape: tuple[int, ...]) -> Blocks:
    return blocks_of(shape, max(shape, default=1))  # one block


def _rotated(shape: tuple[int, ...], group: Group) -> dict[int, int]:
    """Return the modes that are rotated, and their sizes."""
    blocks = _blocks(shape)
    if len(blocks.axes) < 2 and not group["vectors"]:
        return {}
    return {
        mode: shape[axis]
        for mode, axis in enumerate(blocks.axes)
        if shape[axis] <= group["largest"]
    }


def _turned(
    tensor: Tensor, state: State, modes: list[int], back: bool = False, squared: bool = False
) -> Tensor:
    """Multiply the bases, or their entries' squares, onto the modes."""
    blocks = _blocks(tuple(tensor.shape))
    matrices = {}
    for mode in modes:
        basis = state[f"basis_{mode}"]
        basis = basis.square() if squared else basis
        matrices[mode] = (basis.mT if back else basis).unsqueeze(0)
    return blocks.join(blocks.on_modes(blocks.cut(tensor), matrices))
