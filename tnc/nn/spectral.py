"""Spectral convolutions: a structured complex weight on the low modes of a Fourier transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.derive.dense import modewise
from tnc.errors import KernelError
from tnc.kernels.einsums import Einsums, lower
from tnc.net import Structure
from tnc.nn.view import Cores, View

ROWS_ASSUMED = 8
"""How many samples the order of contraction is chosen for."""


@dataclass(frozen=True)
class SpectralView(View):
    """`Y[b, o, k] = sum_i W[o, i, k] X[b, i, k]` over kept modes k of the spectrum X (Li, 2021).

    The structure is that of a convolution with the kept modes for its kernel, `i h w -> o`, with
    complex cores: Tucker, CP, trains and all others. On the last axis the first `w` frequencies are
    kept, on every other the first and the last halves of its `h`. The weight is not rebuilt: the
    spectrum is contracted with the cores.
    """

    name: ClassVar[str] = "spectral"

    def prepare(self, structure: Structure) -> tuple[Einsums, ...]:
        if structure.padded or len(structure.signature.inputs) < 2:
            raise KernelError(
                f"{structure.signature} is no spectral weight, which has modes and no padding",
                where=str(structure),
                hint="use a structure of 'i h w -> o' that covers the modes exactly",
            )
        return tuple(lower(modewise(term, ROWS_ASSUMED)) for term in structure.terms)

    def apply(self, prepared: Any, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        raise KernelError("a spectral view is applied by SpectralConv")


class SpectralConv(torch.nn.Module):
    """A Fourier layer whose weight is a structure: `[b, i, y, x]` to `[b, o, y, x]`, of any size.

    >>> import torch
    >>> from tnc.net import Signature
    >>> from tnc.structures import families
    >>> shape = Signature((3,), (2, 4, 3))
    >>> structure = families.get("low-rank")().template(shape).at({"r": 2})
    >>> SpectralConv.initialised(structure)(torch.ones(5, 2, 16, 16)).shape
    torch.Size([5, 3, 16, 16])
    """

    def __init__(
        self, structure: Structure, cores: dict[str, Tensor], bias: Tensor | None = None
    ) -> None:
        super().__init__()
        from tnc.nn.layer import StructuredLayer

        odd = [m for m in structure.signature.inputs[1:-1] if m % 2]
        if odd:
            raise KernelError(
                f"{odd[0]} modes cannot be halved into positive and negative frequencies",
                where=str(structure),
                hint="give an even number of modes for every axis but the last",
            )
        real = [name for name in structure.shapes if not cores[name].is_complex()]
        if real:
            raise KernelError(f"core {real[0]} is real, a spectrum needs complex cores")
        self.layer = StructuredLayer(structure, SpectralView(), cores, bias)

    @classmethod
    def initialised(
        cls,
        structure: Structure,
        std: float | None = None,
        bias: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.complex64,
    ) -> SpectralConv:
        """Build a layer whose dense weight has root mean square `std`, or one over its inputs."""
        from tnc.derive.initial import core_std

        inputs = structure.signature.inputs[0]
        deviations = core_std(structure, std or 1.0 / inputs)
        cores = {
            name: torch.randn(shape, generator=generator, dtype=dtype) * deviations[name]
            for name, shape in structure.shapes.items()
        }
        zeros = torch.zeros(structure.signature.outputs[0], dtype=dtype.to_real())
        return cls(structure, cores, zeros if bias else None)

    @property
    def weight(self) -> Tensor:
        """The dense complex weight `[o, i, modes..]`."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        structure = self.layer.structure
        modes = structure.signature.inputs[1:]
        axes = tuple(range(2, 2 + len(modes)))
        if x.dim() != 2 + len(modes):
            raise KernelError(f"the input has {x.dim()} dimensions, not {2 + len(modes)}")
        whole = torch.fft.rfftn(x, dim=axes)
        places = [
            _places(m, n, axis == axes[-1]) for m, n, axis in zip(modes, whole.shape[2:], axes)
        ]
        kept = whole
        for axis, place in zip(axes, places):
            kept = kept.index_select(axis, place.to(x.device))
        found = self._contracted(kept)
        for axis, place, size in reversed(list(zip(axes, places, whole.shape[2:]))):
            shape = [*found.shape[:axis], size, *found.shape[axis + 1 :]]
            found = found.new_zeros(shape).index_copy(axis, place.to(x.device), found)
        result = torch.fft.irfftn(found, s=x.shape[2:], dim=axes)
        bias = self.layer.bias
        return result if bias is None else result + bias.view(-1, *(1,) * len(modes))  # type: ignore[no-any-return]

    def _contracted(self, kept: Tensor) -> Tensor:
        structure, total = self.layer.structure, None
        for term, program in zip(structure.terms, self.layer._prepared):
            legs = [term.size[n] for n in term.equation.input_indices]
            operands = [kept.reshape(kept.shape[0], *legs)]
            operands += [self.layer.cores[name] for name in program.names[1:]]
            part = program.run(operands)
            part = part.reshape(kept.shape[0], structure.signature.outputs[0], *kept.shape[2:])
            total = part if total is None else total + part
        assert total is not None  # a structure has a term
        return total  # type: ignore[no-any-return]


def _places(modes: int, size: int, last: bool) -> Tensor:
    """Return the frequencies that an axis keeps. Raises KernelError where it has fewer."""
    if modes > size:
        raise KernelError(
            f"{modes} modes are kept, the input has {size} frequencies",
            hint="give a finer input, or fewer modes",
        )
    if last:
        return torch.arange(modes)
    half = modes // 2
    return torch.cat([torch.arange(half), torch.arange(size - half, size)])
