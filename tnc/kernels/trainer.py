"""Kernels with gradients: one node of autograd from input, bias and cores to the output.

Operands are laid once a step: the forward hands those that are copies of cores to the backward, and
with them the values that the kernel's way keeps. Autograd refuses a backward whose cores were
changed in between, as it does for any layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tnc.derive.dense import INPUT, forward
from tnc.kernels.compiled import Kernel
from tnc.kernels.einsums import lower
from tnc.kernels.operands import Lay, gradient, lay
from tnc.net import Network

Flags = tuple[bool, ...]
"""What autograd wants gradients of: the trainer (never), the input, the bias, then every core."""


@dataclass(frozen=True)
class Wanted:
    """What flags come to: names for the kernel, values of the forward, gradients core by core.

    `cores` has for each core that is wanted its place, its operand's place among those that are
    differentiated, how the operand is made, and the core's place in it.
    """

    needs: tuple[str, ...]
    kept: tuple[str, ...]
    cores: tuple[tuple[int, int, Lay, int], ...]


@dataclass(eq=False)
class Trainer:
    """A kernel, and how its operands are made of the cores that are named."""

    kernel: Kernel
    network: Network
    lays: tuple[Lay, ...]
    names: tuple[str, ...]
    _wanted: dict[Flags, Wanted] = field(default_factory=dict)

    def wanted(self, flags: Flags) -> Wanted:
        """Return what flags come to."""
        found = self._wanted.get(flags)
        if found is None:
            found = self._wanted[flags] = self._read(flags)
        return found

    def _read(self, flags: Flags) -> Wanted:
        _, x, _, *wants = flags
        asked = dict(zip(self.names, wants))
        needs = self.kernel.needs(x, [any(asked[n] for n in how.cores) for how in self.lays])
        found, count = [], int(x)
        for how in self.lays:
            own = [name for name in how.cores if asked[name]]
            for name in own:
                found.append((self.names.index(name), count, how, how.cores.index(name)))
            count += bool(own)
        return Wanted(needs, self.kernel.kept(needs), tuple(found))


def trained(trainer: Trainer, cores: Sequence[Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
    """Apply to rows `[n, inputs]`, differentiable in the input, the bias and the cores."""
    if trainer.kernel.by_compiler:
        named = dict(zip(trainer.names, cores))
        operands = [lay(how, named) for how in trainer.lays]
        return trainer.kernel.applied(operands, x, bias)
    found: Tensor = _Trained.apply(trainer, x, bias, *cores)  # type: ignore[no-untyped-call]
    return found


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, trainer: Trainer, x: Tensor, bias: Tensor | None, *cores: Tensor
    ) -> Tensor:
        kernel, named = trainer.kernel, dict(zip(trainer.names, cores))
        operands = [lay(how, named) for how in trainer.lays]
        copies = [
            None if operand.data_ptr() == named[how.cores[0]].data_ptr() else operand
            for how, operand in zip(trainer.lays, operands)
        ]
        ctx.trainer, ctx.flags = trainer, ctx.needs_input_grad
        held: Sequence[Tensor] = ()
        y: Tensor
        if kernel.choice.way.back.kept:
            wanted = trainer.wanted(ctx.flags)
            last = () if bias is None else (bias,)
            found: Any = kernel.keeping(wanted.needs, bias is not None)(x, *operands, *last)
            y, *held = found if wanted.kept else (found,)
        elif bias is None:
            y = kernel.forward(x, *operands)
        else:
            y = kernel.forward_bias(x, *operands, bias)
        ctx.save_for_backward(x, *cores, *copies, *held)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        trainer: Trainer = ctx.trainer
        flags: Flags = ctx.needs_input_grad
        x, *given = ctx.saved_tensors
        count = len(trainer.names)
        cores, copies = given[:count], given[count : count + len(trainer.lays)]
        own: list[Tensor | None] = [None] * count
        dx = None
        if torch.is_grad_enabled():
            dx, *own = _differentiable(trainer, dy, x, cores, (flags[1], *flags[3:]))
        else:
            wanted, named = trainer.wanted(flags), dict(zip(trainer.names, cores))
            operands = [
                lay(how, named) if copy is None else copy for how, copy in zip(trainer.lays, copies)
            ]
            held = given[count + len(copies) :]
            if held:
                kept = dict(zip(trainer.wanted(ctx.flags).kept, held))
                held = [kept[name] for name in wanted.kept]
            if wanted.needs:
                run = trainer.kernel.backward(wanted.needs)
                found = run(dy.contiguous(), x, *held, *operands)
                dx = found[0] if flags[1] else None
                for place, operand, how, inside in wanted.cores:
                    others = [named[name] for name in how.cores]
                    own[place] = gradient(how, inside, found[operand], others)
        return None, dx, dy.sum(0) if flags[2] else None, *own


def _differentiable(
    trainer: Trainer, dy: Tensor, x: Tensor, cores: Sequence[Tensor], wants: Sequence[bool]
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again, by plain einsums."""
    with torch.enable_grad():
        y = plain(trainer, x, dict(zip(trainer.names, cores)))
        asked = [t for t, want in zip((x, *cores), wants) if want]
        given = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    return [next(given) if want else None for want in wants]


def plain(trainer: Trainer, x: Tensor, cores: Mapping[str, Tensor]) -> Tensor:
    """Apply the network by pairwise einsums."""
    network = trainer.network
    contraction = forward(network, max(1, x.shape[0]))
    given = [x.reshape(x.shape[0], *(network.size[n] for n in network.equation.input_indices))]
    given += [cores[name] for name in contraction.names[1:]]
    assert contraction.names[0] == INPUT
    return lower(contraction).run(given).reshape(x.shape[0], -1)
