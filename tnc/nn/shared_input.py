"""Layers that read one tensor and hold cores in common compute the work of those cores once.

Query, key and value are three modules; what their first factor makes of the input is one product.
The module that holds them all (the owner) opens a frame when its forward starts. The first layer
that is called with a tensor leaves the product in the frame, the others take it from there; when
the forward of the owner ends, whatever way, the frame is gone. Nothing is kept between forwards,
and a layer that is called outside of the owner's forward computes for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import KernelError
from tnc.net import Structure
from tnc.nn.batched import Batch, cannot
from tnc.nn.layer import StructuredLayer
from tnc.nn.linear_view import LinearView
from tnc.nn.shared_frame import OPEN, Frame, Split, split_at

PAYS = 2e6
"""FLOPs to be saved in a group from which sharing pays: it costs some 10 us itself."""

_MARK = "_owns_shared_inputs"
_GROUPS = "_shared_inputs"


class SharingLayer(StructuredLayer):
    """A structured layer that takes the product of its `front` cores from the owner's frame.

    Without such cores it takes its own result, which is computed with those of its group.
    """

    front: tuple[str, ...]
    _split: tuple[Structure, Split] | None
    _batch: Batch | None = None
    """The group's, at its first layer."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer; within the owner's forward, the front cores are applied once."""
        frame = None if torch.compiler.is_compiling() else OPEN.frames.get(id(self))
        if frame is None or not frame.serves(input):
            return super().forward(input, output_size)
        if not self.front:
            found = frame.part(self, input)
            return super().forward(input, output_size) if found is None else found
        split = self.split()
        if split is None or input.numel() * split.work * (frame.readers - 1) < PAYS:
            return super().forward(input, output_size)
        cores: Any = self._modules["cores"]._parameters  # type: ignore[union-attr]
        if self.structure.stored or len(cores) < len(self.structure.shapes):
            cores = self._kept()
        product = frame.product(input, split, cores)
        return split.back.run(cores, self.bias, product)

    def split(self) -> Split | None:
        """Return the two halves, ready to run; None where the structure has none (any more)."""
        if self._split is None or self._split[0] is not self.structure:
            found = split_at(self.structure, self.front, self.view)
            if found is None:
                return None
            self._split = (self.structure, found)
        return self._split[1]

    def batch(self, layers: Sequence[SharingLayer]) -> Batch:
        """Return the group that this layer is the first of, ready to be applied together."""
        known = vars(self).get("_batch")
        if known is None or any(one is not other for one, other in zip(known.layers, layers)):
            known = vars(self)["_batch"] = Batch(layers)
        return known

    def _forget(self) -> None:
        super()._forget()
        vars(self).pop("_batch", None)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"_split": None}
        state.pop("_batch", None)
        return state


def share_inputs_(owner: nn.Module, paths: Sequence[str], front: Sequence[str]) -> None:
    """Let layers below `owner` share the product of their front cores within its forward.

    Without `front` they are applied together, as one batch. Raises KernelError where one is no
    structured layer, or cannot be split at these cores, or where they are no batch.
    """
    layers = [owner.get_submodule(path) for path in paths]
    for path, layer in zip(paths, layers):
        if not isinstance(layer, StructuredLayer) or not isinstance(layer.view, LinearView):
            raise KernelError(f"{path} is no structured linear layer")
        if front and split_at(layer.structure, tuple(front), layer.view) is None:
            raise KernelError(
                f"the layer cannot be split at its cores {', '.join(front)}",
                where=f"{path}: {layer.structure}",
            )
    reason = "" if front else cannot(layers)  # type: ignore[arg-type]
    if reason:
        raise KernelError(f"the layers cannot be applied together: {reason}", where=paths[0])
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
    """Return the groups that a module owns: the paths of their layers, and their front cores.

    Layers that took another structure since, and cannot share with it, are left out.
    """
    found = []
    for paths in getattr(owner, _GROUPS, ()):
        held = _layers(owner, paths)
        layers = {path: each for path, each in held.items() if not each.front or each.split()}
        front = next(iter(layers.values())).front if layers else ()
        if len(layers) > 1 and (front or not cannot(list(layers.values()))):
            found.append((tuple(layers), front))
    return tuple(found)


def unshare_(owner: nn.Module) -> None:
    """Undo `share_inputs_` for all groups of an owner."""
    for paths in vars(owner).pop(_GROUPS, ()):
        for layer in _layers(owner, paths).values():
            vars(layer).pop("front")
            vars(layer).pop("_split")
            vars(layer).pop("_batch", None)
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
        frames = OPEN.frames
        before = _open(self, frames)
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            _close(before, frames)

    return forward


def _open(owner: nn.Module, frames: dict[int, Frame]) -> list[tuple[int, Frame | None]]:
    """Open a frame for every group of an owner; return what was there for each layer."""
    before = []
    for paths in getattr(owner, _GROUPS, ()):
        layers = _layers(owner, paths)
        frame = Frame(tuple(layers.values()))
        for layer in layers.values():
            before.append((id(layer), frames.get(id(layer))))
            frames[id(layer)] = frame
    return before


def _close(before: list[tuple[int, Frame | None]], frames: dict[int, Frame]) -> None:
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
