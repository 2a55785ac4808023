"""Layers that read one tensor and hold cores in common compute the work of those cores once.

Query, key and value are three modules; what their first factor makes of the input is one product.
The module that holds them all (the owner) opens a frame when its forward starts. The first layer
that is called with a tensor leaves the product in the frame, the others take it from there; when
the forward of the owner ends, whatever way, the frame is gone. Nothing is kept between forwards,
and a layer that is called outside of the owner's forward computes for itself.

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
from torch import Tensor, nn

from tnc.derive.cost import Work, cost
from tnc.derive.halves import halves
from tnc.errors import KernelError
from tnc.net import Structure
from tnc.nn.layer import StructuredLayer
from tnc.nn.sparse import Kept
from tnc.nn.view import View
from tnc.nn.views import LinearView

PAYS = 2e6
"""FLOPs to be saved in a group from which sharing pays: it costs some 10 us itself."""

_MARK = "_owns_shared_inputs"
_GROUPS = "_shared_inputs"


class SharingLayer(StructuredLayer):
    """A structured layer that takes the product of its `front` cores from the owner's frame."""

    front: tuple[str, ...]
    _split: tuple[Structure, _Split] | None

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer; within the owner's forward, the front cores are applied once."""
        frame = None if torch.compiler.is_compiling() else _OPEN.frames.get(id(self))
        if frame is None or not frame.serves(input):
            return super().forward(input, output_size)
        split = self.split()
        if split is None or input.numel() * split.work * (frame.readers - 1) < PAYS:
            return super().forward(input, output_size)
        cores: Any = self._modules["cores"]._parameters  # type: ignore[union-attr]
        if self.structure.stored or len(cores) < len(self.structure.shapes):
            cores = self._kept()
        product = frame.product(input, split, cores)
        return split.back.run(cores, self.bias, product)

    def split(self) -> _Split | None:
        """Return the two halves, ready to run; None where the structure has none (any more)."""
        if self._split is None or self._split[0] is not self.structure:
            found = _split(self.structure, self.front, self.view)
            if found is None:
                return None
            self._split = (self.structure, found)
        return self._split[1]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_split": None}


class _Half:
    """One half of a structure, ready to run: by generated kernels where a layer would use them."""

    def __init__(self, structure: Structure, view: View):
        self.structure, self.view = structure, view
        self.prepared, self.generated = view.prepare(structure), view.generated(structure)

    def run(self, cores: Mapping[str, Tensor | Kept], bias: Tensor | None, x: Tensor) -> Tensor:
        """Apply the half."""
        if self.generated is not None and x.numel() and self.generated.takes(x):
            own: dict[str, Any] = {name: cores[name] for name in self.structure.shapes}
            first = next(iter(own.values()))
            if first.dtype == x.dtype and first.is_cpu:
                return self.generated.run(own, bias, x)
        return self.view.apply(self.prepared, cores, bias, x)  # type: ignore[arg-type]


class _Split:
    """The halves of a structure; `work` are FLOPs of the front for an input's entry."""

    def __init__(self, front: Structure, back: Structure, names: tuple[str, ...], view: View):
        self.names, self.front, self.back = names, _Half(front, view), _Half(back, view)
        self.work = cost(front, Work("linear", 128)).flops / (128 * front.signature.inputs[0])


def _split(structure: Structure, names: tuple[str, ...], view: View) -> _Split | None:
    """Split a layer; its halves are its own, since kernels keep what they made of the cores."""
    found = halves(structure, frozenset(names))
    return None if found is None else _Split(_one(found[0]), found[1], names, view)


@functools.lru_cache(maxsize=4096)
def _one(structure: Structure) -> Structure:
    """Return one object for all equal structures, so that they can be told by identity."""
    return structure


class _Frame:
    """What the layers of one group have in common while their owner's forward runs."""

    def __init__(self, readers: int) -> None:
        self.readers, self._left = readers, 0
        self._mode = _mode()
        self._input: Tensor | None = None
        self._cores: tuple[Tensor, ...] = ()
        self._front: Structure | None = None
        self._stamp: tuple[Any, ...] = ()
        self._product: Tensor | None = None

    def serves(self, x: Tensor) -> bool:
        """Whether products may be shared for this input now."""
        return isinstance(x, Tensor) and not x.is_inference() and _mode() == self._mode

    def product(self, x: Tensor, split: _Split, cores: Mapping[str, Tensor | Kept]) -> Tensor:
        """Return what the front makes of the input, computed by the first that asks for it."""
        held = tuple(cores[name] for name in split.names)
        tensors = tuple(core.values if isinstance(core, Kept) else core for core in held)
        stamp = _stamp(x, tensors)
        known = (
            self._input is x
            and self._stamp == stamp
            and len(self._cores) == len(tensors)
            and all(a is b for a, b in zip(self._cores, tensors))
            and self._front is split.front.structure
        )
        product = self._product if known else None
        if product is None:
            product = split.front.run(cores, None, x)
            self._input, self._cores, self._stamp = x, tensors, stamp
            self._front, self._product, self._left = split.front.structure, product, self.readers
        self._left -= 1
        if not self._left:  # all have theirs: let go of it
            self._input = self._product = None
        return product


class _Open(threading.local):
    """The frames of running owners, by the identity of their layers; a thread has its own."""

    def __init__(self) -> None:
        self.frames: dict[int, _Frame] = {}


_OPEN = _Open()
_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def _mode() -> object:
    """The mode of autograd, as far as products made in one may not be used in another."""
    if not torch.is_grad_enabled():
        return False
    # where torch does not tell its hooks, no two modes are equal: nothing is shared with gradients
    return (True, _hooks(True)) if _hooks is not None else object()


def _stamp(x: Tensor, cores: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """What must be equal, beside the identities, for a product to be what it would be now."""
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else None
    return (x._version, x.requires_grad, dtype, *(core._version for core in cores))


def share_inputs_(owner: nn.Module, paths: Sequence[str], front: Sequence[str]) -> None:
    """Let layers below `owner` share the product of their front cores within its forward.

    Raises KernelError where one is no structured layer, or cannot be split at these cores.
    """
    layers = [owner.get_submodule(path) for path in paths]
    for path, layer in zip(paths, layers):
        if not isinstance(layer, StructuredLayer) or not isinstance(layer.view, LinearView):
            raise KernelError(f"{path} is no structured linear layer")
        if _split(layer.structure, tuple(front), layer.view) is None:
            raise KernelError(
                f"the layer cannot be split at its cores {', '.join(front)}",
                where=f"{path}: {layer.structure}",
            )
    for layer in layers:
        layer.__class__ = SharingLayer
        vars(layer).update(front=tuple(front), _split=None)
    groups = (*getattr(owner, _GROUPS, ()), tuple(paths))
    vars(owner)[_GROUPS] = groups
    owner.__class__ = owning_class(_base(type(owner)))


def may_own(module: nn.Module) -> str:
    """Say why a module cannot be an owner; empty where it can."""
    kind = _base(type(module))
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return f"{kind.__name__} has a way of its own to be pickled"
    if "forward" in vars(module):
        return "its forward was replaced"
    return ""


def owns_shared_inputs(module: nn.Module) -> bool:
    """Whether a module's forward opens frames."""
    return _MARK in vars(type(module))


def groups_of(owner: nn.Module) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Return the groups that a module owns: the paths of their layers, and their front cores."""
    found = []
    for paths in getattr(owner, _GROUPS, ()):
        layers = _layers(owner, paths)
        if len(layers) > 1:
            found.append((tuple(layers), next(iter(layers.values())).front))
    return tuple(found)


def unshare_(owner: nn.Module) -> None:
    """Undo `share_inputs_` for all groups of an owner."""
    for paths in vars(owner).pop(_GROUPS, ()):
        for layer in _layers(owner, paths).values():
            vars(layer).pop("front")
            vars(layer).pop("_split")
            layer.__class__ = StructuredLayer  # type: ignore[assignment]
    owner.__class__ = _base(type(owner))


def owning_class(base: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of `base` whose forward opens frames, made once; same name, same module.

    It pickles and deep-copies as the original class.
    """
    if base not in _CLASSES:
        body: dict[str, Any] = {
            _MARK: True,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
            "forward": _opening(base),
        }
        _CLASSES[base] = type(base.__name__, (base,), body)
    return _CLASSES[base]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _base(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.__mro__[1] if _MARK in vars(kind) else kind


def _opening(base: type[nn.Module]) -> Any:
    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a compiler merges equal products
            return base.forward(self, *args, **kwargs)
        frames = _OPEN.frames
        before = _open(self, frames)
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            _close(before, frames)

    return forward


def _open(owner: nn.Module, frames: dict[int, _Frame]) -> list[tuple[int, _Frame | None]]:
    """Open a frame for every group of an owner; return what was there for each layer."""
    before = []
    for paths in getattr(owner, _GROUPS, ()):
        layers = _layers(owner, paths)
        frame = _Frame(len(layers))
        for layer in layers.values():
            before.append((id(layer), frames.get(id(layer))))
            frames[id(layer)] = frame
    return before


def _close(before: list[tuple[int, _Frame | None]], frames: dict[int, _Frame]) -> None:
    for key, frame in before:
        if frame is None:
            frames.pop(key, None)
        else:
            frames[key] = frame


def _layers(owner: nn.Module, paths: Sequence[str]) -> dict[str, SharingLayer]:
    """Return the layers of a group that are still there: a user may have put others in."""
    found = {}
    for path in paths:
        module: nn.Module | None = owner
        for name in path.split("."):
            module = module._modules.get(name) if module is not None else None
        if isinstance(module, SharingLayer):
            found[path] = module
    return found


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    has_own = hasattr(self, "__getstate__")
    state = self.__getstate__() if has_own else self.__dict__  # type: ignore[no-untyped-call]
    return _restore, (_base(type(self)),), state


def _restore(base: type[nn.Module]) -> nn.Module:
    made = owning_class(base)
    return made.__new__(made)
