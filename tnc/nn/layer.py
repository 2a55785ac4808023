"""The structured layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnc.derive.initial import core_std
from tnc.errors import KernelError
from tnc.net import Structure
from tnc.nn.dense import plan_rebuild, rebuild
from tnc.nn.given import Given
from tnc.nn.sparse import Kept, compressed
from tnc.nn.view import View

POSITIONS = "positions_"
_LOWERED = ("_prepared", "_rebuild", "_generated")


class StructuredLayer(nn.Module):
    """A layer whose weight is a structure; the view says how the weight is applied.

    `cores` holds one parameter a core, of shape `structure.shapes[name]`; frozen and constant cores
    do not require gradients. Of a sparse core it holds the stored values, whose flat places are the
    buffer `positions_NAME`; it is given as a dense tensor, or as values with `positions`.
    `tensors()` has all cores whole. `weight` rebuilds the dense weight, differentiable, for code
    that reads it.

    >>> import torch, tnc
    >>> from tnc.net import Structure, parse_network
    >>> from tnc.nn import LinearView
    >>> s = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2"))
    >>> layer = tnc.StructuredLayer.initialised(s, LinearView(), std=0.02)
    >>> layer(torch.ones(3, 8)).shape
    torch.Size([3, 4])
    """

    bias: Tensor | None

    def __init__(
        self,
        structure: Structure,
        view: View,
        cores: Mapping[str, Tensor],
        bias: Tensor | None = None,
        positions: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        positions, cores = dict(positions or {}), dict(cores)
        _check_shapes(structure, cores, positions)
        for name, count in structure.stored.items():
            if name not in positions:
                cores[name], positions[name] = compressed(cores[name], count, name)
            self.register_buffer(POSITIONS + name, positions[name])
        self.structure = structure
        self.view = view
        self.cores = nn.ParameterDict(
            {name: _parameter(cores[name], structure.kinds[name]) for name in structure.shapes}
        )
        self.register_parameter("bias", _as_parameter(bias))
        for name, value in view.attributes(structure).items():
            setattr(self, name, value)
        self._lower()

    @classmethod
    def initialised(
        cls,
        structure: Structure,
        view: View,
        std: float,
        *,
        bias: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> StructuredLayer:
        """Build a layer with normal cores such that the dense weight has root mean square `std`.

        Core variances follow from the equation (`derive.core_std`); what is left of chance in small
        cores is taken out by one common factor, so the root mean square is `std` to rounding.
        """
        deviations = core_std(structure, std)
        cores = {
            name: torch.randn(shape, generator=generator, dtype=dtype) * deviations.get(name, 1.0)
            for name, shape in structure.shapes.items()
        }
        for name, count in structure.stored.items():
            order = torch.randperm(cores[name].numel(), generator=generator)
            mask = torch.zeros(cores[name].numel()).index_fill(0, order[:count], 1.0)
            cores[name] = cores[name] * mask.reshape(cores[name].shape).to(dtype)
        found = float(rebuild(structure, cores).pow(2).mean().sqrt())
        free = [
            [core.name for core in term.equation.cores if core.name in deviations]
            for term in structure.terms
        ]
        if found > 0 and all(free):
            for names in free:
                for name in names:
                    cores[name] = cores[name] * (std / found) ** (1 / len(names))
        return cls(structure, view, cores, bias)

    @property
    def weight(self) -> Tensor:
        """The dense weight in the layout of the layer that this one stands for."""
        return self.view.layout(self._rebuild.run(self.tensors()))

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer; an `output_size` is for transposed convolutions, as the library's."""
        generated = self._generated
        if generated is not None and input.numel() and generated.takes(input):
            own = self._modules["cores"]._parameters  # type: ignore[union-attr]
            first = next(iter(own.values()), None)
            if generated.fits(first, input):
                return generated.run(own, self._parameters["bias"], input)  # type: ignore[arg-type]
        prepared = self._prepared
        if output_size is not None:
            prepared = self.view.resized(prepared, input, output_size)
        cores = self._kept() if self.view.gathers else self.tensors()
        return self.view.apply(prepared, cores, self.bias, input)  # type: ignore[arg-type]

    @property
    def positions(self) -> dict[str, Tensor]:
        """The flat places of the stored entries of every sparse core."""
        return {name: getattr(self, POSITIONS + name) for name in self.structure.stored}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return every core by name as a dense tensor, differentiable."""
        if not self.structure.stored:
            return self.cores  # type: ignore[return-value]
        return {
            name: core.dense() if isinstance(core, Kept) else core
            for name, core in self._kept().items()
        }

    def _kept(self) -> Mapping[str, Tensor | Kept]:
        structure = self.structure
        if not structure.stored:
            return self.cores  # type: ignore[return-value]
        return {
            name: Kept(self.cores[name], getattr(self, POSITIONS + name), shape)
            if name in structure.stored
            else self.cores[name]
            for name, shape in structure.shapes.items()
        }

    def run(
        self, cores: Mapping[str, Tensor], x: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Apply the layer with other cores of the same shapes, such as masked ones."""
        prepared = self._prepared
        if output_size is not None:
            prepared = self.view.resized(prepared, x, output_size)
        return self.view.apply(prepared, cores, self.bias, x)

    def dense(self, cores: Mapping[str, Tensor]) -> Tensor:
        """Return the dense weight of other cores, in the layout that `weight` has."""
        return self.view.layout(self._rebuild.run(cores))

    def restructure_(
        self,
        structure: Structure,
        cores: Mapping[str, nn.Parameter],
        positions: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take a structure of the same signature, with its parameters, and lower it anew.

        Of sparse cores the stored values are given, and their `positions`. Raises KernelError for
        another signature, or for cores that do not fit the structure.
        """
        positions = dict(positions or {})
        if structure.signature != self.structure.signature:
            raise KernelError(
                f"the layer is {self.structure.signature}, the structure {structure.signature}",
                where=str(structure),
            )
        lost = [name for name in structure.stored if name not in positions]
        if lost:
            raise KernelError(
                f"the positions of the sparse core {lost[0]} would be lost",
                where=str(structure),
                hint="give positions={name: flat places of its stored values}",
            )
        _check_shapes(structure, cores, positions)
        for name in self.structure.stored:
            del self._buffers[POSITIONS + name]
        for name, places in positions.items():
            self.register_buffer(POSITIONS + name, places)
        self.structure = structure
        self.cores = nn.ParameterDict({name: cores[name] for name in structure.shapes})
        self._lower()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lowered programs out of pickles: they follow from structure and view."""
        return {k: v for k, v in self.__dict__.items() if k not in _LOWERED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lower()

    def _lower(self) -> None:
        self._prepared = self.view.prepare(self.structure)
        self._rebuild = plan_rebuild(self.structure)
        self._generated = self.view.generated(self.structure)

    def train(self, mode: bool = True) -> StructuredLayer:
        """Switch the mode; what was made of the cores for inference is dropped."""
        self._forget()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> StructuredLayer:
        """Move or cast the layer; what was made of its old cores is not held on to."""
        self._forget()
        return super()._apply(*args, **kwargs)  # type: ignore[no-any-return,no-untyped-call]

    def _forget(self) -> None:
        self.view.forget(self._prepared)
        if self._generated is not None:
            self._generated.forget()

    def adopt_kernels(self, given: Given) -> None:
        """Choose kernels for what is given, by the tuning in force, and use them from now on."""
        self.view.adopt(self._prepared, self._generated, given)

    def extra_repr(self) -> str:
        return f"{self.structure}, view={type(self.view).__name__}, bias={self.bias is not None}"

    def describe(self) -> dict[str, Any]:
        """Return structure and view as plain data; `artifact` rebuilds the layer from it."""
        from tnc.net import to_json

        return {"structure": to_json(self.structure), "view": self.view.as_json()}


def _check_shapes(
    structure: Structure, cores: Mapping[str, Tensor], positions: Mapping[str, Tensor]
) -> None:
    for name, shape in structure.shapes.items():
        if name in positions:
            shape = (structure.stored[name],)
        if name not in cores or tuple(cores[name].shape) != shape:
            got = tuple(cores[name].shape) if name in cores else "nothing"
            raise KernelError(
                f"core {name} must have shape {shape}, got {got}", where=str(structure)
            )


def _parameter(value: Tensor, kind: str) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach(), requires_grad=kind == "trainable")


def _as_parameter(bias: Tensor | None) -> nn.Parameter | None:
    if bias is None or isinstance(bias, nn.Parameter):
        return bias
    return nn.Parameter(bias.detach())
