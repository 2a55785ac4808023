"""Count what a forward keeps for its backward, beyond the input and the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks


def saved_bytes(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]
) -> int:
    """Return the bytes of all storages kept that are no parameter's and not the input's.

    Counted are tensors saved for the backward and those that a custom function holds as attributes;
    each storage once, and whole.
    """
    x = x.detach().requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(x)
    kept += [tensor for node in _nodes(result.grad_fn) for tensor in _held(_attributes(node))]
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *parameters)}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in known)


def growing_bytes(
    function: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor]
) -> float:
    """Return how many of the bytes grow with the rows: those of activations, not of cores.

    The slope between all rows and a few less, which a layer treats as the same number.
    """
    fewer = x.shape[0] - max(1, x.shape[0] // 40)
    difference = saved_bytes(function, x, parameters) - saved_bytes(function, x[:fewer], parameters)
    return difference * x.shape[0] / (x.shape[0] - fewer)


def _nodes(first: Node | None) -> Iterator[Node]:
    seen: set[Node] = set()
    waiting = [first] if first is not None else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [after for after, _ in node.next_functions if after is not None]


def _attributes(node: Node) -> Any:
    """Return what a custom function has set on its context; nothing for torch's own."""
    return getattr(node, "__dict__", {})


def _held(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _held(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _held(one)
