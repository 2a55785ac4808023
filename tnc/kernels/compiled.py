"""Programs as functions: source that was emitted, executed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tnc.derive.dense import INPUT, ROWS
from tnc.kernels.choose import Choice
from tnc.kernels.emitters.einsum_source import emit as plain_of
from tnc.kernels.emitters.numba_source import emit as loops_of
from tnc.kernels.emitters.torch_backward import Backward
from tnc.kernels.emitters.torch_source import emit
from tnc.kernels.emitters.triton_source import emit as fused_of
from tnc.kernels.execute import execute
from tnc.kernels.loops.nest import nests
from tnc.kernels.loops.table import bound
from tnc.kernels.loops.turning import turn
from tnc.kernels.program import recomputed
from tnc.kernels.switch import switching, use
from tnc.kernels.way import Way

MANY = 128
"""Rows for which the order of plain einsums is taken, where there are several."""
_NAMES: dict[str, Any] = {
    "mm": torch.mm,
    "bmm": torch.bmm,
    "addmm": torch.addmm,
    "use": use,
    "switching": switching,
    "turn": turn,
}


@lru_cache(maxsize=8192)
def functions(source: str) -> dict[str, Any]:
    """Return what emitted source defines."""
    return execute(source, _NAMES)


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors can be read by their addresses."""
    kinds = {(type(t), t.dtype, t.device.type, t.layout) for t in tensors}
    first = tensors[0].dtype
    return all(
        kind in (Tensor, Parameter) and (dtype, device, layout) == (first, "cpu", torch.strided)
        for kind, dtype, device, layout in kinds
    ) and not any(t.is_neg() for t in tensors)


@dataclass(frozen=True)
class Kernel:
    """A choice, ready to run. Operands come in the layouts of the program."""

    choice: Choice

    @cached_property
    def forward(self) -> Callable[..., Tensor]:
        """`forward(x, *operands)` on rows `[n, inputs]`."""
        return self._forward(bias=False)

    @cached_property
    def forward_bias(self) -> Callable[..., Tensor]:
        """`forward(x, *operands, bias)`."""
        return self._forward(bias=True)

    def applied(self, operands: Sequence[Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the forward, with a bias where there is one."""
        if bias is None:
            return self.forward(x, *operands)
        return self.forward_bias(x, *operands, bias)

    def _forward(self, bias: bool) -> Callable[..., Tensor]:
        if self.fused:
            from tnc.kernels.triton_run import forward

            return forward(self.choice.program, self.choice.way, bias)
        if self.by_compiler:
            from tnc.kernels.inductor import compiled

            return compiled(self._plain(bias), self.choice.way.single)
        found: Callable[..., Tensor] = functions(self._torch(bias=bias))["forward"]
        return found

    def needs(self, input: bool, operands: Sequence[bool]) -> tuple[str, ...]:
        """Return the names of what needs a gradient: 'input', and operands."""
        wants = zip(self._operands, operands)
        return (*((INPUT,) if input else ()), *(name for name, want in wants if want))

    @cached_property
    def _operands(self) -> tuple[str, ...]:
        return tuple(step.right.value for step in self.choice.program.products)

    def kept(self, needs: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the values that the gradients of `needs` want from the forward."""
        found = self._kept.get(needs)
        if found is None:
            found, _ = recomputed(self.choice.program, needs, self.choice.way.back.kept)
            self._kept[needs] = found
        return found

    @cached_property
    def _kept(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        return {}

    def keeping(self, needs: tuple[str, ...], bias: bool) -> Callable[..., tuple[Tensor, ...]]:
        """`forward(x, *operands, bias)`: the output, where values are kept a tuple with them."""
        if self.fused:  # nothing between its products is in memory
            return self._forward(bias)  # type: ignore[return-value]
        return self._training("forward", needs, bias)

    def backward(self, needs: tuple[str, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """`backward(dy, x, *kept, *operands)`; gradients in the order 'input', then products."""
        return self._training("backward", needs)

    def _training(
        self, name: str, needs: tuple[str, ...], bias: bool = False
    ) -> Callable[..., tuple[Tensor, ...]]:
        found = self._made.get((name, needs, bias))
        if found is None:
            found = functions(self._torch(bias=bias, needs=needs))[name]
            self._made[name, needs, bias] = found
        return found

    @cached_property
    def _made(self) -> dict[tuple[str, tuple[str, ...], bool], Callable[..., tuple[Tensor, ...]]]:
        return {}

    def source(self, *, bias: bool = False, needs: tuple[str, ...] = ()) -> str:
        """Return the source that runs; of loops, their meaning for a tile of rows."""
        if self.looped and not needs:
            return loops_of(self.choice.program, self.choice.way.tile or 1, bias=bias)
        if self.by_compiler:
            return self._plain(bias)
        if self.fused:
            text = fused_of(self.choice.program, self.choice.way.tile, bias=bias)
            if not needs:
                return text
            back = Backward(self.choice.program, self._by_torch, frozenset(needs)).text()
            return f"{text}\n\n\n{back}"
        return self._torch(bias=bias, needs=needs)

    def _torch(self, *, bias: bool = False, needs: tuple[str, ...] = ()) -> str:
        return emit(self.choice.program, self._by_torch, bias=bias, needs=needs)

    @cached_property
    def _by_torch(self) -> Way:
        """The way that torch's products take; of a Triton kernel those of its gradients."""
        way = self.choice.way
        return replace(way, tile=0, emitter="torch") if self.fused else way

    def _plain(self, bias: bool) -> str:
        return plain_of(self.choice.program, 1 if self.choice.way.single else MANY, bias=bias)

    @cached_property
    def by_compiler(self) -> bool:
        """Whether `torch.compile` has the forward, and with gradients the backward too."""
        return self.choice.way.emitter == "inductor"

    @cached_property
    def fused(self) -> bool:
        """Whether the forward is one Triton kernel; gradients are torch's products then."""
        return self.choice.way.emitter == "triton"

    @cached_property
    def looped(self) -> bool:
        """Whether the forward runs as loops over memory."""
        return self.choice.way.emitter == "numba"

    def bind(
        self, operands: Sequence[Tensor], bias: Tensor | None, rows: int
    ) -> Callable[[Tensor], Tensor]:
        """Return `x -> y` on so many rows with these operands, which are read at each call.

        Loops take tensors of one dtype on the CPU and fall back to torch's products for others.
        """
        held = [*operands, *(() if bias is None else (bias,))]
        if self.looped and _plain(held):
            call = self._bound(operands, bias, rows)
            if call is not None:
                return call
        if bias is None:
            return lambda x: self.forward(x, *operands)
        return lambda x: self.forward_bias(x, *operands, bias)

    def _bound(
        self, operands: Sequence[Tensor], bias: Tensor | None, rows: int
    ) -> Callable[[Tensor], Tensor] | None:
        if bias is not None and not bias.is_contiguous():
            return None
        program, tile = self.choice.program, self.choice.way.tile
        names = [operand.name for operand in program.operands]
        given = {name: each.contiguous() for name, each in zip(names, operands)}
        size = dict(program.sizes)
        inputs = prod(size[n] for n in program.inputs)
        outputs = prod(size[n] for n in program.output if n != ROWS)
        with suppress(ImportError):  # numba has gone since the choice was made
            steps = partial(nests, program)
            return bound(steps, given, bias, (rows, inputs, outputs), tile)
        return None
