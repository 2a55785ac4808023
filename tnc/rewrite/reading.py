"""What layers read while a model runs: whole inputs, and the rows that they multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import call, kept_rows
from tnc.capture.moments import patches
from tnc.decide.site import Site

KEEP_BYTES = 2 << 30
"""How many bytes of the original's activations are kept; beyond it they are computed again."""

PIXELS = 1 << 17
"""About how many patches of a convolution are looked at: evenly spread over all of them."""


class _Reached(Exception):
    """Stops a forward at the layer that is asked about."""


class Originals:
    """What the layers of the original read, kept where it fits into `KEEP_BYTES`."""

    def __init__(
        self, model: nn.Module, paths: Sequence[str], batches: Sequence[Any], room: int | None
    ) -> None:
        self._model, self._batches = model, batches
        self._kept: dict[tuple[str, int], Tensor] = {}
        room = KEEP_BYTES if room is None else room
        for number, batch in enumerate(batches):
            found = _inputs_at(model, paths, batch)
            room -= sum(tensor.numel() * tensor.element_size() for tensor in found.values())
            if room < 0:
                break
            self._kept.update({(path, number): tensor for path, tensor in found.items()})

    def input(self, path: str, number: int) -> Tensor:
        """Return the tensor that a layer reads in a batch."""
        kept: Tensor | None = self._kept.pop((path, number), None)
        return kept if kept is not None else input_at(self._model, path, self._batches[number])


def _inputs_at(model: nn.Module, paths: Sequence[str], batch: Any) -> dict[str, Tensor]:
    """Run a model once and return the tensors that several layers read."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            found[path] = value.detach().clone()  # later code may write to it

        return hook

    with torch.no_grad(), watched(model, {path: keep(path) for path in paths}):
        call(model, batch)
    return found


def input_at(model: nn.Module, path: str, batch: Any) -> Tensor:
    """Run a model until it reaches a layer and return the tensor that the layer reads."""
    found: list[Tensor] = []

    def stop(value: Tensor) -> None:
        found.append(value.detach())
        raise _Reached

    with torch.no_grad(), watched(model, {path: stop}), suppress(_Reached):
        call(model, batch)
    return found[0]


def rows_of(tensor: Tensor, site: Site, batch: Any, batches: int) -> Iterator[Tensor]:
    """Yield the vectors that a layer multiplies, in parts.

    Vectors that the batch's mask leaves out are left out; of patches about `PIXELS` are taken.
    """
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    if site.op == "conv":
        images = tensor if tensor.dim() > len(site.signature.inputs) else tensor.unsqueeze(0)
        pixels = max(1, site.work.rows) * len(images) * batches
        step = -(-pixels // PIXELS)
        step += step > 1 and step % 2 == 0  # an odd step meets all columns of the image
        for rows in patches(images, site.signature.inputs[1:], dict(site.options)):
            yield rows[::step]
        return
    rows = tensor.flatten(0, -2)
    count, kept = kept_rows(batch, "attention_mask")
    yield rows[kept] if kept is not None and len(rows) == count else rows


@contextmanager
def watched(model: nn.Module, hooks: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Let functions see what layers read, given by place or by name (`layer(input=x)`)."""

    def seen(look: Callable[[Tensor], None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            look(args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(seen(look), with_kwargs=True)
        for path, look in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
