"""What flows through a model's linear layers while it trains: inputs and output gradients.

A `Capture` hooks every `nn.Linear` and adds up a statistic of the rows that come in, and of the
gradients that come back, by the layer's weight. Nothing is recorded before a gradient comes back: a
validation pass leaves no trace, an input counts when its gradient does, microbatches add up. What
is kept is the statistic, never the rows. Many captures may watch one model.

A capture lives as long as its owner: hooks hold it weakly, `release` takes them off. A copied or
pickled model has hooks that do nothing, which the next capture of that model takes off.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Gather:
    """A statistic of rows: what rows `(n, d)` add to it, and its degree in the rows."""

    add: Callable[[Tensor], Tensor]
    degree: int


def _sum(rows: Tensor) -> Tensor:
    return rows.sum(0)


def _gram(rows: Tensor) -> Tensor:
    return rows.mT @ rows


MEANS = Gather(_sum, 1)
"""`E[x]`, (d)."""

SQUARES = Gather(_gram, 2)
"""`E[x x^T]`, (d, d)."""


@dataclass(frozen=True, eq=False)
class Captured:
    """The mean statistic of a layer's inputs and of its output gradients, over `rows` rows.

    Output gradients are those of a row's own loss, where the loss is the mean over rows: the
    gradient that came back times the number of rows. So are microbatches whose losses are divided
    by their number.
    """

    inputs: Tensor
    outputs: Tensor
    rows: int


@dataclass(eq=False)
class _Record:
    inputs: Tensor
    outputs: Tensor
    rows: int


class Capture:
    """Statistics of the inputs and output gradients of a model's linear layers, by weight.

    `listens` says of a weight whether its rows are wanted now: it is asked in every forward pass.
    With a loss scaler the gradients are scaled ones. Where processes train one model together
    (`torch.distributed` is initialised) `take` averages over all of them, and must be called by
    all. Weights that fully_shard divides are known by their shards: shard the model before.
    Statistics are in float32 at least.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    >>> with Capture(net, MEANS) as capture:
    ...     net(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).mean().backward()
    ...     found = capture.take(net[0].weight)
    >>> found.inputs, found.outputs, found.rows
    (tensor([2., 3.]), tensor([1.]), 2)
    """

    def __init__(
        self,
        model: nn.Module,
        gather: Gather,
        listens: Callable[[nn.Parameter], bool] = lambda weight: True,
    ) -> None:
        self._gather = gather
        self._listens = listens
        self._records: dict[nn.Parameter, _Record] = {}
        self._watched: set[nn.Parameter] = set()
        self._shards: dict[nn.Module, nn.Parameter] = {}
        self._handles = []
        for module in model.modules():
            weight = module._parameters.get("weight")
            if isinstance(module, nn.Linear) and weight is not None:
                drop_dead(module)
                self._watched.add(weight)
                if hasattr(weight, "full_tensor"):
                    self._shards[module] = weight
                watch = Watch(weakref.ref(self))
                self._handles.append(module.register_forward_hook(watch, with_kwargs=True))

    def watches(self, weight: Tensor) -> bool:
        """Whether a parameter is the weight of a linear layer of the model."""
        return weight in self._watched

    def take(self, weight: Tensor) -> Captured | None:
        """Return what came since the last call, and forget it; None where nothing came."""
        record = self._records.pop(weight, None)  # type: ignore[call-overload]
        if record is None:
            return None
        inputs = record.inputs / record.rows
        outputs = record.outputs * float(record.rows) ** (self._gather.degree - 1)
        return Captured(_averaged(inputs), _averaged(outputs), record.rows)

    def release(self) -> None:
        """Take the hooks off the model. What was recorded is forgotten."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._records.clear()
        self._watched.clear()
        self._shards.clear()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def seen(self, module: nn.Module, args: Any, kwargs: Any, outputs: Tensor) -> None:
        """Take note of a forward pass of a layer."""
        inputs: Tensor = args[0] if args else kwargs["input"]
        weight = module._parameters["weight"]
        assert weight is not None
        if not self.watches(weight):  # whole for the time of a pass, where it lies in shards
            weight = self._shards.get(module, weight)
        if not (outputs.requires_grad and weight.requires_grad and self.watches(weight)):
            return
        if self._listens(weight):
            backward = partial(self._backward, weight, inputs.detach())
            outputs.register_hook(backward)  # type: ignore[no-untyped-call]

    def _backward(self, weight: nn.Parameter, inputs: Tensor, gradient: Tensor) -> None:
        rows = _rows(inputs)
        ins, outs = self._gather.add(rows), self._gather.add(_rows(gradient.detach()))
        record = self._records.get(weight)
        if record is None:
            self._records[weight] = _Record(ins, outs, len(rows))
        else:
            record.inputs += ins
            record.outputs += outs
            record.rows += len(rows)


class Watch:
    """A forward hook that tells its owner what it saw, as long as that lives; copies are dead."""

    def __init__(self, owner: weakref.ref[Any] | None = None) -> None:
        self._owner = owner

    @property
    def dead(self) -> bool:
        """Whether nobody is told."""
        return self._owner is None or self._owner() is None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        owner = None if self._owner is None else self._owner()
        if owner is not None:
            owner.seen(module, args, kwargs, outputs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Watch, ())


def drop_dead(module: nn.Module) -> None:
    """Take hooks off a module whose capture is gone, or that came with a copy."""
    for key, hook in list(module._forward_hooks.items()):
        if isinstance(hook, Watch) and hook.dead:
            del module._forward_hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).to(torch.promote_types(tensor.dtype, torch.float32))


def _averaged(statistic: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return statistic
    distributed.all_reduce(statistic)
    return statistic.div_(distributed.get_world_size())
