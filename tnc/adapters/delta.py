"""One adapter beside one weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from tnc.adapters.method import Method, Parts
from tnc.decide.site import Site
from tnc.net import Structure
from tnc.nn import StructuredLayer, View


class Delta(nn.Module):
    """A structure that is applied as the weight is, times `factor`; what it adds is the method's.

    `layer` holds the cores (the trainable ones require gradients), `extras` what else is trained,
    `constant(name)` what is not.
    """

    def __init__(
        self, method: Method, site: Site, structure: Structure, view: View, parts: Parts
    ) -> None:
        super().__init__()
        self.method, self.site = method, site
        self.factor = float(method.factor(site))
        self.layer = StructuredLayer(structure, view, parts.cores)
        self.extras = nn.ParameterDict({k: _parameter(v) for k, v in parts.extras.items()})
        self.constants = tuple(parts.constants)
        for name, value in parts.constants.items():
            self.register_buffer(name, value)

    @property
    def cores(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the cores by name."""
        return self.layer.cores  # type: ignore[return-value]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What the adapter trains by name: trainable cores and extras."""
        kinds = self.layer.structure.kinds
        cores = {name: core for name, core in self.cores.items() if kinds[name] == "trainable"}
        return {**cores, **dict(self.extras.items())}

    @property
    def dropout(self) -> float:
        """The share of inputs that is dropped in training."""
        return float(getattr(self.method, "dropout", 0.0))

    def constant(self, name: str) -> Tensor:
        """Return what is kept beside the parameters."""
        found = self._buffers[name]
        assert found is not None
        return found

    def applied(self, x: Tensor) -> Tensor:
        """Return the product of the delta with the layer's input, times the factor."""
        if self.training and self.dropout and x.is_floating_point():
            x = functional.dropout(x, self.dropout)
        first = next(iter(self.cores.values()))
        if x.is_floating_point() and x.dtype != first.dtype:
            wide: Tensor = self.layer(x.to(first.dtype))
            return (wide * self.factor).to(x.dtype)
        y: Tensor = self.layer(x)
        return y if self.factor == 1.0 else y * self.factor

    def dense(self) -> Tensor:
        """Return the delta as a dense tensor in the weight's stored layout, times the factor."""
        return self.layer.weight * self.factor

    def mapped(self, stored: Tensor) -> Tensor:
        """Bring a tensor from the weight's stored layout into that of the map, outputs first."""
        return stored.permute(self.site.order)

    def extra_repr(self) -> str:
        """Say which method it is."""
        return f"{self.method}, factor={self.factor:g}"


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach())
