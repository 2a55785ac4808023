"""M-FAC: the inverse of the mean outer product of the last gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.history import CLOCK, coefficients, put_products, turn
from tnc.optim.joint import JointRule
from tnc.optim.kinds import Group, Kind, State
from tnc.optim.momentum import BUFFER, ball, descend
from tnc.optim.options import NonNegative, Range, Share
from tnc.optim.rule import Part, rules

LONGEST = 1024
"""The largest window: the system of equations of each step has as many unknowns."""


@rules.register("mfac")
class MFAC(JointRule):
    """`W <- W - lr (damp I + G^T G / k)^-1 g`, with the last k gradients as the rows of `G (k, d)`.

    d counts the entries of all parameters: gradients of different layers are correlated here. The
    newest row is g itself; rows not yet filled are zero. With `momentum` mu a buffer
    `B <- mu B + u` of the preconditioned gradients u takes their place.

    State of a parameter of n entries: `gradients` (k, n) in its shape, `products` (k, k), its part
    of `G G^T`, the number `clock`, and `momentum_buffer` (n) where there is momentum. (Frantar,
    Kurtic and Alistarh, M-FAC, NeurIPS 2021, the dynamic algorithm of section 3.2; here the inverse
    is applied through the k x k system that it reduces to, see `tnc.optim.history`.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "gradients": Kind.COVECTOR,
        "products": Kind.GRAM,
        BUFFER: Kind.CHANGE,
        CLOCK: Kind.SCALAR,
    } | {f"gradients_{row}": Kind.COVECTOR for row in range(LONGEST)}
    shared = ("window", "damping")

    window: Annotated[int, Range(1, LONGEST)] = 32
    damping: NonNegative = 1e-5
    momentum: Share = 0.0

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        k = group["window"]
        return {
            "gradients": weight.new_zeros(k, *weight.shape),
            "products": weight.new_zeros(k, k),
            CLOCK: 0,
        } | ball(weight, group)

    def update_together(self, parts: Sequence[Part]) -> None:
        first = parts[0].group
        row = turn(parts, first["window"])
        for part in parts:
            rows = part.state["gradients"]
            rows[row].copy_(part.gradient)
            flat = rows.flatten(1)
            put_products(part.state["products"], row, flat @ flat[row])
        found = coefficients([p.state["products"] for p in parts], row, first["damping"])
        for part in parts:
            rows = part.state["gradients"]
            change = (found.to(rows) @ rows.flatten(1)).view_as(part.weight)
            descend(self, part.weight, change, part.state, part.group)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        k: int = group["window"]
        return 4 * ((k + bool(group["momentum"])) * prod(shape) + k * k)

    def read(self, state: State, weight: Tensor, group: Group) -> dict[str, Tensor]:
        """Return every row as a slot of its own: each moves as a gradient does, exactly."""
        if "gradients" not in state:
            return {}
        return {f"gradients_{row}": found for row, found in enumerate(state["gradients"])}

    def write(self, moved: State, weight: Tensor, group: Group) -> dict[str, Any]:
        rows = [moved[f"gradients_{row}"] for row in range(group["window"]) if moved]
        if not rows:
            return {}
        stacked = torch.stack(rows).to(torch.promote_types(weight.dtype, torch.float32))
        flat = stacked.flatten(1)
        return {"gradients": stacked, "products": flat @ flat.mT}
