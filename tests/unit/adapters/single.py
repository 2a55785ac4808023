"""One linear layer with one adapter, for identities in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.adapters import Adapters, Method, adapt
from tnc.adapters.delta import Delta


@dataclass
class Single:
    """`y = x W^T` with W (9, 7), adapted; the loss is `<y, t>`, whose gradient by W is `t^T x`."""

    adapters: Adapters
    base: Tensor
    x: Tensor
    target: Tensor

    @property
    def delta(self) -> Delta:
        return next(iter(self.adapters.deltas().values()))

    @property
    def full(self) -> Tensor:
        """The gradient of the weight."""
        return self.target.T @ self.x

    def weight(self) -> Tensor:
        """The weight with what the adapter adds."""
        return self.adapters.weight("weight").detach()

    def backward(self, loss: Tensor | None = None) -> None:
        for parameter in self.adapters.parameters():
            parameter.grad = None
        y = self.adapters.model(self.x)
        ((y * self.target).sum() if loss is None else loss).backward()


def single(method: Method | str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Single:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    layer = nn.Linear(7, 9, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(9, 7))
    x, target = draw(12, 7), draw(12, 9)

    def loss(y: Tensor, batch: Tensor) -> Tensor:
        return (y * target).sum()

    found = adapt(layer, method, calibration=[x], loss=loss, seed=3)
    return Single(found, layer.weight.detach().clone(), x, target)


def scatter(adapters: Adapters, size: float = 0.3) -> None:
    """Move everything that is trained, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (size * noise).to(parameter)
