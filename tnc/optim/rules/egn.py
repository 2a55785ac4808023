"""EGN: the exact Gauss-Newton direction of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tnc.errors import BindError
from tnc.optim.declaring import argument, option
from tnc.optim.jacobians import Batch, Batches, jacobian
from tnc.optim.joint import JointRule
from tnc.optim.kinds import Group, Kind
from tnc.optim.options import NonNegative
from tnc.optim.rule import Part, rules

Curvature = Callable[[Tensor], Tensor]
"""From outputs `(n, c)` to the Hessian of each row's loss by its outputs, `(n, c, c)`."""


def squared(outputs: Tensor) -> Tensor:
    """Return that of `mse_loss`, the mean over outputs: `2 / c I`."""
    n, c = outputs.shape
    return (2 / c * torch.eye(c).to(outputs)).expand(n, c, c)


def cross_entropy(outputs: Tensor) -> Tensor:
    """Return that of `cross_entropy` of logits: `diag(p) - p p^T`."""
    p = outputs.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def binary_cross_entropy(outputs: Tensor) -> Tensor:
    """Return that of `binary_cross_entropy_with_logits`: `diag(p (1 - p)) / c`."""
    p = outputs.sigmoid()
    return torch.diag_embed(p * (1 - p)) / outputs.shape[-1]


Loss = Literal["squared", "cross-entropy", "binary-cross-entropy", "given"]
LOSSES: Mapping[Loss, Curvature] = {
    "squared": squared,
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
}


@rules.register("egn")
class EGN(JointRule):
    """`W <- W - lr J^T (Q J J^T + n lambda I)^-1 r`, the Gauss-Newton step of the whole batch.

    It is `(J^T Q J / n + lambda I)^-1 J^T r / n` over all parameters: of the two systems the
    smaller one is solved, in float64. J `(n c, d)` is the Jacobian of the outputs of n rows, r
    their gradients of a row's own loss, Q its Hessian by the outputs, lambda `damping`. r and the
    inputs are those of the last backward pass through the model, or of all microbatches since the
    last step, where the loss is the mean over rows.

    `loss` names Q: 'squared' (`mse_loss`), 'cross-entropy', 'binary-cross-entropy' (with logits),
    or it is a function from outputs (n, c) to (n, c, c). The model's samples must not depend on
    each other. State: none but the step; a step holds J, `n c d` numbers. (Korbit et al., Exact
    Gauss-Newton Optimization for Training Deep Neural Networks, 2024, algorithm 1, without its line
    search.)
    """

    kinds: ClassVar[Mapping[str, Kind]] = {}
    shared = ("damping", "loss")

    model: nn.Module = argument(kw_only=False)
    loss: Loss | Curvature = option(kw_only=False)
    curvature: Curvature | None = argument(default=None)
    lr = 0.1
    damping: NonNegative = 1.0

    def refuses(self, weight: Tensor, group: Group) -> str:
        return "" if weight in self._names else "it is no parameter of the model"

    def start(self, weight: Tensor, group: Group) -> dict[str, Any]:
        return {}

    def state_bytes(self, shape: tuple[int, ...], group: Group) -> int:
        return 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        loss = {**self.defaults, **param_group}.get("loss")
        if callable(loss):  # groups, which are saved, hold its name
            self.curvature = loss
            param_group["loss"] = "given"
            if callable(self.defaults.get("loss")):
                self.defaults["loss"] = "given"
        elif loss == "given" and self.curvature is None:
            raise BindError("EGN: loss is 'given'", hint="give the function itself")
        super().add_param_group(param_group)

    def adopt(self, model: nn.Module) -> None:
        self.release()
        super().adopt(model)

    def release(self) -> None:
        """Take the hook off the model."""
        self._batches.release()

    def update_together(self, parts: Sequence[Part]) -> None:
        batches = self._batches.take()
        if batches:
            direction = self._direction([self._name(part) for part in parts], batches)
        elif any(bool(part.gradient.any()) for part in parts):
            raise BindError(
                "EGN saw no batch although there are gradients",
                hint="run the model that the rule was given; rule.adopt(model) gives it another",
            )
        else:
            return
        sizes = [part.weight.numel() for part in parts]
        for part, change in zip(parts, torch.split(direction, sizes)):
            self.decay_(part.weight, part.state, part.group)
            part.weight.add_(change.view_as(part.weight).to(part.weight), alpha=-part.group["lr"])

    def _direction(self, names: list[str], batches: list[Batch]) -> Tensor:
        curvature = LOSSES.get(self.param_groups[0]["loss"]) or self.curvature
        assert curvature is not None  # `add_param_group` saw to it
        jacobians, residuals, curvatures = [], [], []
        rows = sum(batch.outputs[..., 0].numel() for batch in batches)
        for batch in batches:
            c = batch.outputs.shape[-1]
            found = jacobian(self.model, names, batch).double()
            jacobians.append(found.reshape(-1, found.shape[-1]))
            residuals.append(batch.gradient.double().reshape(-1) * rows)
            curvatures.append(curvature(batch.outputs.double().reshape(-1, c)))
        return direction(
            torch.cat(jacobians),
            torch.cat(residuals),
            torch.cat(curvatures),
            self.param_groups[0]["damping"],
        )

    def _name(self, part: Part) -> str:
        name = self._names.get(part.parameter)  # type: ignore[call-overload]
        if name is None:
            raise BindError(
                f"EGN is to train a parameter of shape {tuple(part.weight.shape)} that its model "
                "does not have",
                hint="rule.adopt(model) gives it the model that is trained now",
            )
        return str(name)

    def attach(self) -> None:
        self._names = {parameter: name for name, parameter in self.model.named_parameters()}
        self._batches = Batches(self.model)


def direction(rows: Tensor, residual: Tensor, curvature: Tensor, damping: float) -> Tensor:
    """Return `J^T (Q J J^T + n lambda I)^-1 r`, or the same by the system of d unknowns.

    `rows` is J (n c, d), `residual` r (n c), `curvature` Q (n, c, c).
    """
    n, c = len(curvature), curvature.shape[-1]
    d = rows.shape[1]
    if d < n * c:
        bent = (curvature @ rows.view(n, c, d)).reshape(n * c, d)
        system = rows.mT @ bent / n
        system.diagonal().add_(damping)
        solved: Tensor = torch.linalg.solve(system, rows.mT @ residual / n)
        return solved
    system = (curvature @ (rows @ rows.mT).view(n, c, n * c)).reshape(n * c, n * c)
    system.diagonal().add_(n * damping)
    weights: Tensor = torch.linalg.solve(system, residual)
    return rows.mT @ weights
