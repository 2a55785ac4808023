"""ScaledGD: gradient descent on factors that does not see how their product is divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.factors import FactorRule, inverse_gram
from tnc.optim.kinds import Group, Kind
from tnc.optim.options import NonNegative
from tnc.optim.rule import rules


@rules.register("scaledgd")
class ScaledGD(FactorRule):
    """`U -= lr (G V^T) (V V^T + damping)^-1` and `V -= lr (U^T U + damping)^-1 (U^T G)`.

    Of a weight `U V` with gradient G, both from the values before the step. Without damping the
    step of `U V` is the same for `U T, T^-1 V`. Factors with common legs (block trains) are solved
    leg by leg. Other parameters, where `others='plain'` allows them, take plain gradient steps.

    No state: `(bond, bond)` inverses are made at every step. (Tong, Ma and Chi, ScaledGD, JMLR
    2021, equation 3; damped: Xu et al., 2023, ScaledGD(lambda), equation 6.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {}

    lr = 0.1
    damping: NonNegative = 1e-3

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {}

    def read_factor(self, matrix: Tensor, group: Group) -> Tensor:
        return inverse_gram(matrix, group["damping"])

    def factor_change(
        self, gradient: Tensor, other: Any, state: dict[str, Any], group: Group
    ) -> Tensor:
        found: Tensor = gradient @ other
        return found

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        self.decay_(weight, state, group)
        weight.add_(gradient, alpha=-group["lr"])

    def state_bytes(
        self, shape: tuple[int, ...], group: Group, other: tuple[int, ...] | None = None
    ) -> int:
        return 0
