"""EFCP: M-FAC on a sparse history of gradients, with error feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.optim.history import CLOCK, coefficients, put_products, turn
from tnc.optim.joint import JointRule
from tnc.optim.kinds import Group, Kind
from tnc.optim.momentum import BUFFER, ball, descend
from tnc.optim.options import Count, NonNegative, Share
from tnc.optim.rule import Part, rules
from tnc.optim.sparsifying import Blocks


@rules.register("efcp")
class EFCP(JointRule):
    """`e <- e + g`, `s = top(e)`, `e <- e - s`, `W <- W - lr (damp I + S^T S / k)^-1 s`.

    top keeps the share `density` of the entries of every block, the largest; what it leaves waits
    in e for its turn. S holds the last k sparse gradients of all parameters. With `half` values are
    kept in bfloat16, and e takes their rounding. As M-FAC otherwise.

    State of a parameter of n entries, K of them kept: `error` (n) in its shape, `places` (k, K) in
    int16 (int32 for blocks above 32768), `values` (k, K), `products` (k, k), `clock`, and
    `momentum_buffer` (n) where there is momentum. (Modoranu et al., Error Feedback Can Accurately
    Compress Preconditioners, ICML 2024, algorithm 1 with the sparse M-FAC of section 4.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "error": Kind.COVECTOR,
        "places": Kind.OPAQUE,
        "values": Kind.OPAQUE,
        "products": Kind.GRAM,
        BUFFER: Kind.CHANGE,
        CLOCK: Kind.SCALAR,
    }
    shared = ("window", "damping")

    window: Count = 32
    damping: NonNegative = 1e-5
    density: Share = 0.01
    block: Count = 16384
    half: bool = False
    momentum: Share = 0.0

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        blocks, k = _blocks(tuple(weight.shape), group), group["window"]
        kept = torch.bfloat16 if group["half"] else weight.dtype
        return {
            "error": torch.zeros_like(weight, memory_format=torch.contiguous_format),
            "places": weight.new_zeros(k, blocks.total, dtype=blocks.places),
            "values": weight.new_zeros(k, blocks.total, dtype=kept),
            "products": weight.new_zeros(k, k),
            CLOCK: 0,
        } | ball(weight, group)

    def update_together(self, parts: Sequence[Part]) -> None:
        first = parts[0].group
        row = turn(parts, first["window"])
        for part in parts:
            self._put(part, row)
        found = coefficients([p.state["products"] for p in parts], row, first["damping"])
        for part in parts:
            state, blocks = part.state, _blocks(tuple(part.weight.shape), part.group)
            weights = found.to(part.weight)
            change = blocks.combine(state["places"], state["values"], weights)
            descend(self, part.weight, change.view_as(part.weight), state, part.group)

    def _put(self, part: Part, row: int) -> None:
        """Write the newest sparse gradient of a parameter, and keep what it leaves out."""
        state, blocks = part.state, _blocks(tuple(part.weight.shape), part.group)
        error = state["error"].add_(part.gradient).view(-1)
        places = blocks.largest(error)
        flat = blocks.flat(places)
        state["places"][row] = places
        state["values"][row] = error[flat].to(state["values"].dtype)
        sent = torch.zeros_like(error).index_copy_(0, flat, state["values"][row].to(error))
        error.sub_(sent)
        found = blocks.dots(state["places"], state["values"], sent)
        put_products(state["products"], row, found)

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        blocks, k = _blocks(shape, group), int(group["window"])
        entry = (2 if group["half"] else 4) + blocks.places.itemsize
        dense = 1 + bool(group["momentum"])
        return 4 * (dense * prod(shape) + k * k) + k * blocks.total * entry


def _blocks(shape: tuple[int, ...], group: Group) -> Blocks:
    return Blocks.of(prod(shape), group["block"], group["density"])
