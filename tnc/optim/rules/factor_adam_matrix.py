"""Adam for factors with a matrix second moment: LoRA-RITE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.factors import FactorRule
from tnc.optim.kinds import Group, Kind
from tnc.optim.projections import adam_direction
from tnc.optim.rule import STEP, rules
from tnc.optim.shared_options import Moments

_NEGLIGIBLE = 1e-10
"""Eigenvalues below this share of the largest are rounding, which no step may blow up."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The other factor as `Q R`: orthonormal `(batch, n, k)`, and the pseudo-inverse of R."""

    basis: Tensor
    inverse: Tensor


@rules.register("factor-adam-matrix")
class LoraRite(Moments, FactorRule):
    """Adam in the column space of the other factor, invariant to how the product is divided.

    For a factor A of `A B^T` with `B = Q R`: `g = G_A R^+` is the gradient with respect to `A R^T`,
    and `P = Q^T Q_old` takes what was known of the last column space to this one:

        V   <- b2 P V P^T + (1 - b2) g^T g / n
        rho <- b2 (rho + max |eigenvalues(V) - eigenvalues(P V P^T)|)
        M   <- b1 M P^T + (1 - b1) g (V_hat + rho_hat)^(-1/2)
        A   <- A - lr M_hat R^+^T

    rho is the mass that V lost by turning; V turns exactly within a column space, where rho stays.
    Both are debiased, and so is M. Other parameters, where `others='plain'` allows them, take steps
    of Adam.

    State of a factor `(n, r)` beside one `(m, r)`: `momentum` (n, k), `basis` (m, k), `second`
    (k, k), `escaped` (1), with `k = min(m, r)`; of another parameter `exp_avg`, `exp_avg_sq`. (Yen
    et al., LoRA Done RITE, ICLR 2025, algorithm 1, with averages in the place of sums.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = dict.fromkeys(
        ("momentum", "basis", "second", "escaped", "exp_avg", "exp_avg_sq"), Kind.OPAQUE
    )

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {slot: weight.new_zeros(weight.shape) for slot in ("exp_avg", "exp_avg_sq")}

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        self.decay_(weight, state, group)
        weight.add_(adam_direction(gradient, state, group), alpha=-group["lr"])

    def read_factor(self, matrix: Tensor, group: Group) -> Frame:
        basis, root = torch.linalg.qr(matrix)
        limit = 10 * torch.finfo(matrix.dtype).eps
        return Frame(basis, torch.linalg.pinv(root.double(), rtol=limit).to(matrix.dtype))

    def factor_change(
        self, gradient: Tensor, other: Frame, state: dict[str, Any], group: Group
    ) -> Tensor:
        if "basis" not in state or state["basis"].shape != other.basis.shape:
            _open(gradient, other, state)
        first, second = group["betas"]
        steps = float(state[STEP])
        plain = gradient @ other.inverse
        turn = other.basis.mT @ state["basis"]
        state["basis"].copy_(other.basis)
        turned = turn @ state["second"] @ turn.mT
        lost = (torch.linalg.eigvalsh(state["second"]) - torch.linalg.eigvalsh(turned)).abs()
        state["escaped"].add_(lost.amax(-1)).mul_(second)
        state["second"].copy_(turned).lerp_(plain.mT @ plain / plain.shape[1], 1 - second)
        whole = state["second"] / (1 - second**steps)
        escaped = state["escaped"] / (1 - second**steps)
        step = plain @ inverse_root(whole, escaped, group["eps"])
        momentum = state["momentum"]
        momentum.copy_(momentum @ turn.mT).lerp_(step, 1 - first)
        found: Tensor = (momentum @ other.inverse.mT).div_(1 - first**steps)
        return found

    def state_bytes(
        self, shape: tuple[int, ...], group: Group, other: tuple[int, ...] | None = None
    ) -> int:
        if other is None:
            return 4 * 2 * prod(shape)
        batch, size, bond = shape
        k = min(other[1], bond)
        return 4 * batch * (size * k + other[1] * k + k * k + 1)


def inverse_root(second: Tensor, escaped: Tensor, eps: float) -> Tensor:
    """Return `(V + rho)^(-1/2)` of matrices `(batch, k, k)`; what is rounding counts as zero."""
    values, vectors = torch.linalg.eigh(second.double())
    values = values.clamp_min(0) + escaped.double()[:, None]
    kept = values > _NEGLIGIBLE * values.amax(-1, keepdim=True)
    roots = torch.where(kept, 1 / (values.sqrt() + eps), 0.0)
    found: Tensor = ((vectors * roots[:, None]) @ vectors.mT).to(second.dtype)
    return found


def _open(gradient: Tensor, other: Frame, state: dict[str, Any]) -> None:
    """Start the slots of a factor in the place of those that a parameter without a pair has."""
    for slot in LoraRite.kinds:
        state.pop(slot, None)
    batch, size = gradient.shape[:2]
    k = other.basis.shape[-1]
    state[STEP].fill_(1)
    state["momentum"] = gradient.new_zeros(batch, size, k)
    state["basis"] = other.basis.clone()
    state["second"] = gradient.new_zeros(batch, k, k)
    state["escaped"] = gradient.new_zeros(batch)
