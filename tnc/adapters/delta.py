"""One adapter beside one weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnc.adapters.equations import chain
from tnc.adapters.method import Method
from tnc.adapters.norms import row_norms
from tnc.adapters.products import Pair
from tnc.adapters.routes import Route, routes
from tnc.adapters.start import Parts, wide
from tnc.decide.site import Site
from tnc.net import Structure
from tnc.nn import StructuredLayer, View


class Delta(nn.Module):
    """A structure that is applied as the weight is, times `factor`; what it adds is the method's.

    `layer` holds the cores (the trainable ones require gradients), `extras` what else is trained,
    `constant(name)` what is not. In training `steps` counts the optimizer's steps, `seed` is the
    delta's own for what is drawn in forward passes, and `memory` is what hooks keep between steps.
    """

    def __init__(
        self, method: Method, site: Site, structure: Structure, view: View, parts: Parts
    ) -> None:
        super().__init__()
        self.method, self.site = method, site
        self.factor = float(method.factor(site))
        self.layer = StructuredLayer(structure, view, parts.cores, None, parts.positions)
        self._routes: tuple[Structure, tuple[Route, ...]] = (structure, routes(structure))
        self.extras = nn.ParameterDict({k: _parameter(v) for k, v in parts.extras.items()})
        self.constants = tuple(parts.constants)
        for name, value in parts.constants.items():
            self.register_buffer(name, value)
        self.steps = 0
        self.seed = int.from_bytes(hashlib.sha256(site.name.encode()).digest()[:7], "big")
        self.memory: dict[str, Tensor] = {}
        self.probe: Tensor | None = None

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

    def applied(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the product of the delta with the layer's input, times the factor.

        An `output_size` is for transposed convolutions, as the library's.
        """
        if self.training and self.dropout and x.is_floating_point():
            x = functional.dropout(x, self.dropout)
        first = next(iter(self.cores.values()))
        if x.is_floating_point() and x.dtype != first.dtype:
            whole = self._product(x.to(first.dtype), output_size)
            return (whole * self.factor).to(x.dtype)
        y: Tensor = self._product(x, output_size)
        return y if self.factor == 1.0 else y * self.factor

    def product(self, x: Tensor, whole: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply a dense weight, given as a map, as the layer's weight is applied."""
        view = self.layer.view
        prepared = self.__dict__.get("_prepared")
        if prepared is None:
            prepared = view.prepare(chain(self.site.signature, ("D", "o i")))
            self.__dict__["_prepared"] = prepared
        given = x.to(whole.dtype) if x.is_floating_point() else x
        if output_size is not None:
            prepared = view.resized(prepared, given, output_size)
        found = view.apply(prepared, {"D": whole}, None, given)
        return found.to(x.dtype) if x.is_floating_point() else found

    def stirred(self) -> Tensor | None:
        """Return what forward passes add to the weight beside the delta, as a map, if anything.

        That is a perturbation in training, and zeros by which the weight's gradient is watched.
        """
        found = self.method.perturbation(self) if self.training else None
        if self.probe is None:
            return found
        return self.probe if found is None else found + self.probe

    def watch_(self) -> None:
        """Let the coming backward passes gather the gradient of the whole weight: m x n numbers."""
        first = next(iter(self.cores.values()))
        self.probe = first.new_zeros(self.site.signature.shape).requires_grad_(True)

    def watched_(self) -> Tensor | None:
        """Return the gathered gradient as a map and stop; None where no pass reached the weight.

        In a process group of torch.distributed it is the mean over all members.
        """
        probe, self.probe = self.probe, None
        if probe is None:
            return None
        distributed = torch.distributed
        together = distributed.is_available() and distributed.is_initialized()
        if probe.grad is None and not together:
            return None
        found = torch.zeros_like(probe) if probe.grad is None else probe.grad
        if together:
            distributed.all_reduce(found)
            found /= distributed.get_world_size()
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lowered program out of copies: it follows from the view."""
        return {k: v for k, v in self.__dict__.items() if k != "_prepared"}

    def pairs(self, share: float = 1.0) -> tuple[Pair, ...]:
        """Return the delta, times factor and `share`, as pairs of factors; () where it is none.

        Cores between the first and the last are multiplied into the last. Differentiable.
        """
        layer = self.layer
        if self._routes[0] is not layer.structure:
            self._routes = (layer.structure, routes(layer.structure))
        held: Any = layer._modules["cores"]
        own = self.tensors() if self._maps else held._parameters
        return tuple([_pair(one, own, self.factor * share) for one in self._routes[1]])

    def norms(self, weight: Tensor) -> Tensor:
        """Return the norm of every row of the map `weight + delta`; the weight in stored layout.

        No gradient flows through it.
        """
        with torch.no_grad():
            pairs = self.pairs()
            if not pairs:
                whole: Tensor = self.mapped(wide(weight) + self.dense()).flatten(1).norm(dim=1)
                return whole
            keys = (weight,) if isinstance(weight, nn.Parameter) else ()
            return row_norms(self.mapped(weight), pairs, keys)

    def dense(self) -> Tensor:
        """Return the delta as a dense tensor in the weight's stored layout, times the factor."""
        if not self._maps:
            return self.layer.weight * self.factor
        return self.layer.dense(self.tensors()) * self.factor

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every core whole, as it acts; see `Method.tensors`."""
        return self.method.tensors(self)

    @property
    def _maps(self) -> bool:
        """Whether the method computes cores."""
        return type(self.method).tensors is not Method.tensors

    def _product(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if self._maps:
            return self.layer.run(self.tensors(), x, output_size)
        found: Tensor = self.layer(x) if output_size is None else self.layer(x, output_size)
        return found

    def mapped(self, stored: Tensor) -> Tensor:
        """Bring a tensor from the weight's stored layout into that of the map, outputs first."""
        return stored.permute(self.site.order)

    def extra_repr(self) -> str:
        """Say which method it is."""
        return f"{self.method}, factor={self.factor:g}"


def peers(model: nn.Module, delta: Delta) -> list[Delta]:
    """Return every delta that shares the parameters: more than one where weights are tied."""
    mine = {id(core) for core in delta.cores.values()}
    return [
        each
        for each in model.modules()
        if isinstance(each, Delta) and any(id(core) in mine for core in each.cores.values())
    ]


def grouped(model: nn.Module) -> dict[int, list[Delta]]:
    """Return the peers of every delta of a model by the delta's id; see `peers`."""
    found = [each for each in model.modules() if isinstance(each, Delta)]
    owners: dict[int, list[Delta]] = {}
    for each in found:
        for core in each.cores.values():
            owners.setdefault(id(core), []).append(each)
    groups = {}
    for each in found:
        own = {id(other): other for core in each.cores.values() for other in owners[id(core)]}
        groups[id(each)] = list(own.values())
    return groups


def _pair(route: Route, cores: Mapping[str, Tensor], scale: float) -> Pair:
    down, up = _laid(cores[route.down], route.down_order), _laid(cores[route.up], route.up_order)
    if route.middle:
        middle = torch.einsum(route.equation, *[cores[name] for name in route.middle])
        up = up * middle if route.diagonal else up @ middle
    return Pair(down, up, scale)


def _laid(core: Tensor, order: tuple[int, ...]) -> Tensor:
    return core if order == tuple(range(len(order))) else core.permute(order)


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach())
