"""The frame of a running owner: what its layers have in common, computed by the first of them.

A product is taken only for the same tensor, not written to since (its version), the same cores,
likewise, in the same modes of autograd and autocast. Hooks that save tensors elsewhere (gradient
checkpointing) must be those that were there when the owner started, since what they recompute must
be what was computed. Tensors of inference mode have no version: nothing is shared there. Writes
that torch does not count (`x.data`, NumPy) between two calls are not seen.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tnc.derive.cost import Work, cost
from tnc.derive.halves import halves
from tnc.net import Structure
from tnc.nn.generated import beside
from tnc.nn.sparse import Kept
from tnc.nn.view import View


class Half:
    """One half of a structure, ready to run: by generated kernels where a layer would use them."""

    def __init__(self, structure: Structure, view: View):
        self.structure, self.view = structure, view
        self.prepared, self.generated = view.prepare(structure), view.generated(structure)

    def run(self, cores: Mapping[str, Tensor | Kept], bias: Tensor | None, x: Tensor) -> Tensor:
        """Apply the half."""
        if self.generated is not None and x.numel() and self.generated.takes(x):
            own: dict[str, Any] = {name: cores[name] for name in self.structure.shapes}
            if beside(next(iter(own.values())), x):
                return self.generated.run(own, bias, x)
        return self.view.apply(self.prepared, cores, bias, x)  # type: ignore[arg-type]


class Split:
    """The halves of a structure; `work` are FLOPs of the front for an input's entry."""

    def __init__(self, front: Structure, back: Structure, names: tuple[str, ...], view: View):
        self.names, self.front, self.back = names, Half(front, view), Half(back, view)
        self.work = cost(front, Work("linear", 128)).flops / (128 * front.signature.inputs[0])


def split_at(structure: Structure, names: tuple[str, ...], view: View) -> Split | None:
    """Split a layer; its halves are its own, since kernels keep what they made of the cores."""
    found = halves(structure, frozenset(names))
    return None if found is None else Split(_one(found[0]), found[1], names, view)


@functools.lru_cache(maxsize=4096)
def _one(structure: Structure) -> Structure:
    """Return one object for all equal structures, so that they can be told by identity."""
    return structure


class Frame:
    """What the layers of one group have in common while their owner's forward runs."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers, self.readers, self._left = layers, len(layers), 0
        self._parts: tuple[Tensor, ...] = ()
        self._mode = mode()
        self._input: Tensor | None = None
        self._cores: tuple[Tensor, ...] = ()
        self._front: Structure | None = None
        self._stamp: tuple[Any, ...] = ()
        self._product: Tensor | None = None

    def serves(self, x: Tensor) -> bool:
        """Whether products may be shared for this input now."""
        return isinstance(x, Tensor) and not x.is_inference() and mode() == self._mode

    def product(self, x: Tensor, split: Split, cores: Mapping[str, Tensor | Kept]) -> Tensor:
        """Return what the front makes of the input, computed by the first that asks for it."""
        held = tuple(cores[name] for name in split.names)
        tensors = tuple(core.values if isinstance(core, Kept) else core for core in held)
        now = stamp(x, tensors)
        known = (
            self._input is x
            and self._stamp == now
            and len(self._cores) == len(tensors)
            and all(a is b for a, b in zip(self._cores, tensors))
            and self._front is split.front.structure
        )
        product = self._product if known else None
        if product is None:
            product = split.front.run(cores, None, x)
            self._input, self._cores, self._stamp = x, tensors, now
            self._front, self._product, self._left = split.front.structure, product, self.readers
        self._left -= 1
        if not self._left:  # all have theirs: let go of it
            self._input = self._product = None
        return product

    def part(self, layer: Any, x: Tensor) -> Tensor | None:
        """Return a layer's part of what the group makes of the input; None where it is alone."""
        batch = self.layers[0].batch(self.layers)
        if not batch.wants(x):
            return None
        tensors = tuple(batch.tensors())
        if any(t.is_inference() or t.dtype is not x.dtype or not t.is_cpu for t in tensors):
            return None
        now = stamp(x, tensors)
        known = (
            self._input is x
            and self._stamp == now
            and len(self._cores) == len(tensors)
            and all(a is b for a, b in zip(self._cores, tensors))
        )
        if not known:
            self._parts, self._left = batch.run(x, tensors), self.readers
            self._input, self._cores, self._stamp = x, tensors, now
        place = next(k for k, one in enumerate(self.layers) if one is layer)
        found: Tensor = self._parts[place]
        self._left -= 1
        if not self._left:  # all have theirs: let go of it
            self._input, self._parts = None, ()
        return found


class Open(threading.local):
    """The frames of running owners, by the identity of their layers; a thread has its own."""

    def __init__(self) -> None:
        self.frames: dict[int, Frame] = {}


OPEN = Open()
_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def mode() -> object:
    """The mode of autograd, as far as products made in one may not be used in another."""
    if not torch.is_grad_enabled():
        return False
    # where torch does not tell its hooks, no two modes are equal: nothing is shared with gradients
    return (True, _hooks(True)) if _hooks is not None else object()


def stamp(x: Tensor, cores: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What must be equal, beside the identities, for a product to be what it would be now."""
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else None
    return (x._version, x.requires_grad, dtype, *(core._version for core in cores))
