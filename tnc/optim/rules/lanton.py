"""LANTON: noisier layers take shorter steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tnc.optim.joint import JointRule
from tnc.optim.kinds import Group, Kind
from tnc.optim.matrices import as_matrix
from tnc.optim.options import Positive, Share
from tnc.optim.rule import STEP, Part, rules
from tnc.optim.shared_options import Orthogonalised
from tnc.optim.steepest import Norm, asked, dual_norm, steepest


@rules.register("lanton")
class Lanton(Orthogonalised, JointRule):
    """A trust region's step whose length falls with the noise of the parameter's gradient.

    `H <- beta H + (1 - beta) |G - G'|_*^2` in the dual norm; `a = alpha / sqrt(alpha^2 + H)`; then
    `W <- (1 - lr wd) W - lr sqrt(a / max a) D(m)`, the largest a over the parameters of the group
    that have a gradient, and D and m as in `trust-region`. G' stands for the mean gradient: the
    momentum before this step (`against='momentum'`), or the gradient before it ('previous'), which
    is stored. `alpha` is in the gradient's dual norm. Equal noise everywhere is Muon.

    State: `momentum_buffer`, as large as the parameter, and so `previous_gradient` if it is asked
    for; `noise` H and `rate`, a number each. (Hao et al., Noise-Adaptive Layerwise Learning Rates,
    2025.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "momentum_buffer": Kind.COVECTOR,
        "previous_gradient": Kind.COVECTOR,
        "noise": Kind.SCALAR,
        "rate": Kind.SCALAR,
    }

    norm: Norm = "spectral"
    momentum: Share = 0.95
    beta: Share = 0.9
    alpha: Positive = 1.0
    against: Literal["momentum", "previous"] = "momentum"
    exact: bool = False

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        found = {
            "momentum_buffer": torch.zeros_like(weight, memory_format=torch.contiguous_format),
            "noise": torch.zeros((), dtype=torch.float32, device=weight.device),
            "rate": torch.ones((), dtype=torch.float32, device=weight.device),
        }
        if group["against"] == "previous":
            found["previous_gradient"] = torch.zeros_like(found["momentum_buffer"])
        return found

    def update_together(self, parts: Sequence[Part]) -> None:
        groups: dict[int, list[Part]] = {}
        for part in parts:
            groups.setdefault(id(part.group), []).append(part)
        for held in groups.values():
            self._set_rates(held)
            for part in held:
                self._take(part)

    def _set_rates(self, parts: Sequence[Part]) -> None:
        """Measure the noise of parameters of one group, and set the rates that follow from it.

        At the first step there is nothing to compare with: noise is 0, the rate 1.
        """
        lengths = []
        for part in parts:
            state, group, noise = part.state, part.group, part.state["noise"]
            if float(state[STEP]) > 1:
                slot = "previous_gradient" if "previous_gradient" in state else "momentum_buffer"
                apart = as_matrix(part.gradient - state[slot])
                size = dual_norm(apart, *asked(group))
                noise.lerp_(size.square().to(noise), 1 - group["beta"])
            lengths.append(group["alpha"] / (noise + group["alpha"] ** 2).sqrt())
        longest = torch.stack([length.to(lengths[0].device) for length in lengths]).max()
        for part, length in zip(parts, lengths):
            part.state["rate"].copy_((length / longest.to(length)).sqrt())

    def _take(self, part: Part) -> None:
        state, group = part.state, part.group
        buffer = state["momentum_buffer"].lerp_(part.gradient, 1 - group["momentum"])
        if "previous_gradient" in state:
            state["previous_gradient"].copy_(part.gradient)
        found = steepest(as_matrix(buffer), *asked(group))
        self.decay_(part.weight, state, group)
        change = found.mul_(state["rate"]).reshape(part.weight.shape)
        part.weight.add_(change, alpha=-group["lr"])

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 4 * prod(shape) * (2 if group["against"] == "previous" else 1) + 8
