"""Linear layers through generated kernels, where tensors are plain ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, is_autocast_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import functional

from tnc.kernels.applied import LINEAR_DTYPES, Applied
from tnc.net import Structure

_BINDINGS: Any = torch._C
_transforms = _BINDINGS._functorch.peek_interpreter_stack
_dispatch_modes = _BINDINGS._len_torch_dispatch_stack
_tracing = _BINDINGS._get_tracing_state
_PLAIN: ContextVar[bool] = ContextVar("tnc_plain_kernels", default=False)


@contextmanager
def plain_kernels(wanted: bool = True) -> Iterator[None]:
    """Apply layers by pairwise einsums in the order of fewest FLOPs, the same on every machine.

    Plans are made so. With `wanted` False generated kernels run again in the block.
    """
    token = _PLAIN.set(wanted)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain(device: str) -> bool:
    """Whether nobody watches or transforms the calls of torch, nor asked for plain ones."""
    return (
        not is_compiling()
        and not is_autocast_enabled(device)
        and _transforms() is None
        and _tracing() is None
        and forward_ad._current_level < 0
        and not _dispatch_modes()
        and not _PLAIN.get()
    )


@dataclass(frozen=True, eq=False)
class Part:
    """One network of the sum: how much its input is padded, how much of its result is used."""

    applied: Applied
    pad: int
    covers: int


@dataclass(frozen=True, eq=False)
class GeneratedLinear:
    """`y = x W^T + b` of a structure without sparse cores."""

    structure: Structure

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The networks, each with its kernels."""
        (have,) = self.structure.signature.inputs
        return tuple(
            Part(Applied(term), prod(term.signature.inputs) - have, prod(term.signature.outputs))
            for term in self.structure.terms
        )

    @cached_property
    def _widths(self) -> tuple[int, int, Applied | None]:
        """Inputs, outputs, and the only kernels where the structure is one network, unpadded."""
        (want,), (have,) = self.structure.signature.outputs, self.structure.signature.inputs
        part = self.parts[0]
        whole = len(self.parts) == 1 and not part.pad and part.covers == want
        return have, want, part.applied if whole else None

    @staticmethod
    def of(structure: Structure) -> GeneratedLinear | None:
        """Return the kernels of a structure that has some."""
        return None if structure.stored else GeneratedLinear(structure)

    def takes(self, x: Tensor) -> bool:
        """Whether generated kernels run here: a plain tensor on the CPU or a CUDA device, neither
        traced nor transformed.

        Everything else takes the layer's program of plain torch calls, which compilers, exporters,
        function transforms, autocast, dispatch modes (such as FLOP counters) and tensor subclasses
        understand.
        """
        return (
            type(x) is Tensor
            and x.dtype in LINEAR_DTYPES
            and (x.is_cpu or x.is_cuda)
            and is_plain("cpu" if x.is_cpu else "cuda")
            and x.dim() > 0
            and x.size(-1) == self._widths[0]  # loops read memory and would not notice
        )

    def fits(self, core: Tensor | None, x: Tensor) -> bool:
        """Whether the cores, of which this is the first, have the input's dtype and device."""
        return beside(core, x)

    def forget(self) -> None:
        """Drop what was made of the cores for inference, and the memory that it holds."""
        for part in self.parts:
            part.applied.forget()

    def run(self, cores: Mapping[str, Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
        """Apply to `[.., inputs]`, any leading dimensions but none of size 0."""
        have, want, alone = self._widths
        flat = x if x.dim() == 2 else x.reshape(-1, have)
        if not flat.is_contiguous():
            flat = flat.contiguous()
        training = torch.is_grad_enabled() and (
            x.requires_grad
            or (bias is not None and bias.requires_grad)
            or any(core.requires_grad for core in cores.values())
        )
        if alone is not None:
            y = alone(cores, flat, bias, training)
            return y if x.dim() == 2 else y.view(*x.shape[:-1], want)
        total: Tensor | None = None
        for part in self.parts:
            given = functional.pad(flat, (0, part.pad)) if part.pad else flat
            whole = part.covers == want
            own = bias if total is None and whole else None
            y = part.applied(cores, given, own, training)
            if not whole:
                y = y[:, :want]
            if total is None:
                total = y if bias is None or whole else y + bias
            else:
                total = total + y
        assert total is not None
        return total if x.dim() == 2 else total.view(*x.shape[:-1], want)


def beside(core: Tensor | None, x: Tensor) -> bool:
    """Whether a core has the input's dtype and device."""
    if core is None or core.dtype != x.dtype:
        return False
    return core.is_cpu if x.is_cpu else core.device == x.device


def kernels_of(layer: Any) -> Sequence[Applied]:
    """Return the kernels of a layer, one for each network of its sum; empty where it has none."""
    generated = getattr(layer, "_generated", None)
    return [part.applied for part in generated.parts] if generated else []
