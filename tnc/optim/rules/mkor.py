"""MKOR: inverse Kronecker factors by rank-1 updates."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from tnc.optim.capturing import MEANS, Captured
from tnc.optim.kinds import Group, Kind
from tnc.optim.momentum import BUFFER, ball, descend
from tnc.optim.options import Share
from tnc.optim.rule import rules
from tnc.optim.watching import WatchingRule, eye

LARGEST = 2.0
"""The size of an entry from which a factor is drawn to the identity."""
DRAWN = 0.1
"""How far it is drawn."""


@rules.register("mkor")
class MKOR(WatchingRule):
    """`u = L G R`; L and R are inverses of Kronecker factors, kept by rank-1 updates.

    Every `update_every` steps, with v the mean input of the layer for R, the mean gradient of its
    output for L: `J <- beta J + (1 - beta) I`, then `J <- J - (J v)(J v)^T / (1 + v^T J v)`, which
    is `(J^-1 + v v^T)^-1`. A factor with an entry above 2 is first drawn to the identity by a
    tenth. With `rescale` u gets the norm of G. Then a heavy ball: `B <- mu B + u`. Other parameters
    than weights of linear layers need `others='plain'`.

    State of a matrix (m, n): `input_inverse` (n, n), `output_inverse` (m, m) and `momentum_buffer`
    (m, n) where there is momentum. (Mozaffari et al., MKOR, NeurIPS 2023, algorithm 1; processes
    exchange the two vectors only.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "input_inverse": Kind.OPAQUE,
        "output_inverse": Kind.OPAQUE,
        BUFFER: Kind.CHANGE,
    }
    gather = MEANS

    beta: Share = 0.95
    momentum: Share = 0.9
    rescale: bool = True

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return ball(weight, group)

    def learn(
        self, parameter: Tensor, captured: Captured | None, state: dict[str, Any], group: Group
    ) -> None:
        if "input_inverse" not in state:
            m, n = parameter.shape
            state |= {"input_inverse": eye(n, parameter), "output_inverse": eye(m, parameter)}
        if captured is not None:
            rank_one_(state["input_inverse"], captured.inputs, group["beta"])
            rank_one_(state["output_inverse"], captured.outputs, group["beta"])

    def update(self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: Group) -> None:
        change = gradient
        if "input_inverse" in state:
            change = state["output_inverse"] @ gradient @ state["input_inverse"]
            if group["rescale"]:
                change.mul_(gradient.norm() / change.norm().clamp_min(1e-30))
        descend(self, weight, change, state, group)

    def state_bytes(self, shape: tuple[int, ...], group: Group, watched: bool = True) -> int:
        factors = sum(size * size for size in shape) if watched and len(shape) == 2 else 0
        return 4 * (factors + bool(group["momentum"]) * prod(shape))


def rank_one_(inverse: Tensor, vector: Tensor, beta: float) -> None:
    """Draw an inverse factor J to the identity and add `v v^T` to its inverse, in place."""
    if float(inverse.abs().max()) > LARGEST:
        inverse.mul_(1 - DRAWN).diagonal().add_(DRAWN)
    inverse.mul_(beta).diagonal().add_(1 - beta)
    image = inverse @ vector
    inverse.addr_(image, image, alpha=-1.0 / (1.0 + float(vector @ image)))
