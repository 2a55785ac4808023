"""COAP: a projection that follows gradient and momentum between cheap decompositions."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix, matrix_shape
from tnc.optim.options import Count, NonNegative
from tnc.optim.projections import (
    biased_adam_direction,
    down,
    projected_shape,
    projected_start,
    refuses_projection,
    top_subspace,
    up,
)
from tnc.optim.rule import Rule, rules
from tnc.optim.shared_options import Renewed
from tnc.optim.subspaces import (
    cosine,
    reconstruction,
    restored_moments,
    sketched_subspace,
    tall,
)


@rules.register("coap")
class Coap(Renewed, Rule):
    """`W -= lr scale up(Adam(G P^T))` where P is correlated with the momentum M.

    Every `update_every` steps P takes a step of length `projector_lr` down
    `mse(G P^T P, G) (1 - cos(M P, G))`, its gradient cut to norm 1; every `refresh_every` steps it
    becomes the singular vectors of G within the range of `G P^T`. `restore` takes moments along at
    a refresh: `M R^T` and `(sqrt(v) R^T)^2`, `R = P_new P_old^T`. The first P comes from a whole
    decomposition. A parameter of more than two axes is read as a matrix by `matrix_cut`.

    State of a matrix (m, n), m at least n: `exp_avg`, `exp_avg_sq` (m, r), `projector` (r, n).
    (Xiao et al., COAP: Memory-Efficient Training with Correlation-Aware Gradient Projection, CVPR
    2025, algorithm 1.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "exp_avg": Kind.OPAQUE,
        "exp_avg_sq": Kind.OPAQUE,
        "projector": Kind.OPAQUE,
        "right": Kind.OPAQUE,
    }

    update_every = 32
    refresh_every: Count = 160
    projector_lr: NonNegative = 0.1
    restore: bool = False
    scale = 1.0

    def refuses(self, weight: Tensor, group: Group) -> str:
        return refuses_projection(weight)

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return projected_start(as_matrix(weight), group["rank"])

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        matrix, right = as_matrix(gradient), state["right"]
        done, projector = int(state["step"]) - 1, state["projector"]
        if done == 0:
            projector.copy_(top_subspace(matrix, len(projector), right))
        elif done % group["refresh_every"] == 0:
            _refresh(projector, tall(matrix, right), state, group["restore"])
        elif done % group["update_every"] == 0:
            mean = tall(state["exp_avg"], right)
            _correlate(projector, tall(matrix, right), mean, group["projector_lr"])
        direction = biased_adam_direction(down(matrix, projector, right), state, group)
        change = up(direction, projector, right).reshape(weight.shape)
        weight.add_(change, alpha=-group["lr"] * group["scale"])
        self.decay_(weight, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        m, n = matrix_shape(shape)
        small = projected_shape((m, n), group["rank"])
        return 4 * (2 * prod(small) + min(small) * min(m, n))


def correlation_slope(matrix: Tensor, projector: Tensor, mean: Tensor) -> Tensor:
    """Return the gradient of `mse(G P^T P, G) (1 - cos(M P, G))` with respect to P."""
    error, slope = reconstruction(matrix, projector)
    alike, turn = cosine(mean, projector, matrix)
    return (slope * (1 - alike) - error * turn).div_(matrix.numel())


def _correlate(projector: Tensor, matrix: Tensor, mean: Tensor, rate: float) -> None:
    slope = correlation_slope(matrix, projector, mean)
    projector.add_(slope.div_(slope.norm().clamp_min(1)), alpha=-rate)


def _refresh(projector: Tensor, matrix: Tensor, state: dict[str, Any], restore: bool) -> None:
    new = sketched_subspace(matrix, projector)
    if restore:
        slots = ("exp_avg", "exp_avg_sq")
        mean, square = (tall(state[slot], state["right"]) for slot in slots)
        moved = restored_moments(mean, square, projector, new)
        mean.copy_(moved[0])
        square.copy_(moved[1])
    projector.copy_(new)
