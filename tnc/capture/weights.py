"""The parameters of a model, recognised wherever an operation meets them.

A forward pass rarely hands a parameter itself to a kernel: it hands a transpose, a view, a slice,
or a copy in another dtype. All but the copy share the parameter's storage, so a tensor is
recognised by its storage, and its dimensions by their strides. A copy is followed: its storage
stands for the parameter until the memory is used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Alias:
    """How a tensor shows a parameter.

    `axes` gives, for each dimension of the tensor, the parameter's axis that it runs along (None
    for one of size 1 or broadcast); it is None where the layout is another one (reshaped). `start`
    and `sizes` are the part that is shown, by axis. `merged` gives for each dimension the axes that
    were joined to it, outermost first; it is empty where that cannot be told.
    """

    name: str
    axes: tuple[int | None, ...] | None
    start: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: bool
    merged: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class _Layout:
    """A parameter, or a copy of it, as it lies in memory: by axis of the parameter."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    start: tuple[int, ...]
    complex: bool = False

    def covers(self, offset: int) -> bool:
        """Whether an offset into the storage lies inside of this tensor."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        return self.offset <= offset <= last


class Weights:
    """The table of parameters: names, ties, owners, and the storages that stand for them."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.overlaps: dict[str, str] = {}
        self._fixed: dict[int, list[_Layout]] = {}
        self._copies: dict[int, _Layout] = {}
        self._canonical: dict[int, str] = {}
        seen: dict[tuple[object, ...], str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            place = _memory(parameter)
            first = seen.setdefault(place, name)
            self.aliases[first] = (*self.aliases.get(first, ()), name)
            self._canonical[id(parameter)] = first
            if first == name:
                self.parameters[name] = parameter
                self._place(name, parameter)

    def _place(self, name: str, parameter: Tensor) -> None:
        key = storage_key(parameter)
        layout = _Layout(
            name,
            tuple(parameter.shape),
            tuple(parameter.stride()),
            int(parameter.storage_offset()),
            (0,) * parameter.dim(),
            parameter.is_complex(),
        )
        for other in self._fixed.get(key, []) if key else []:
            if other.covers(layout.offset) or layout.covers(other.offset):
                self.overlaps[name], self.overlaps[other.name] = other.name, name
        if key:
            self._fixed.setdefault(key, []).append(layout)

    def name_of(self, tensor: Tensor) -> str | None:
        """The parameter whose memory (or whose copy's) a tensor shows."""
        layout = self._layout(tensor)
        return layout.name if layout else None

    def parameter_of(self, tensor: Tensor, rank: int) -> bool:
        """Whether a tensor shows a parameter of `rank` dimensions."""
        name = self.name_of(tensor)
        return name is not None and self.parameters[name].dim() == rank

    def alias(self, tensor: Tensor) -> Alias | None:
        """How a tensor shows a parameter; None for any other tensor."""
        layout = self._layout(tensor)
        return _match(tensor, layout) if layout else None

    def reinterpreted(self, tensor: Tensor) -> bool:
        """Whether a tensor shows real memory as complex numbers, or complex memory as real ones."""
        layout = self._layout(tensor)
        return layout is not None and layout.complex != tensor.is_complex()

    def follow(self, copy: Tensor, source: Tensor) -> None:
        """Let a copy (another dtype, made contiguous) stand for the parameter it was made of."""
        layout, shown, key = self._layout(source), self.alias(source), storage_key(copy)
        if layout is None or shown is None or shown.axes is None or not key:
            return
        strides = [1] * len(layout.shape)
        for dim, axis in enumerate(shown.axes):
            if axis is not None:
                strides[axis] = copy.stride(dim)
        self._copies[key] = _Layout(
            layout.name,
            shown.sizes,
            tuple(strides),
            int(copy.storage_offset()),
            shown.start,
            copy.is_complex(),
        )

    def gather(self, rows: Tensor, source: Tensor) -> None:
        """Let matrices picked from a whole stack, as often as wanted, stand for the stack."""
        layout, shown, key = self._layout(source), self.alias(source), storage_key(rows)
        if layout is None or shown is None or not shown.whole or shown.axes != (0, 1, 2) or not key:
            return
        self._copies[key] = _Layout(
            layout.name,
            tuple(rows.shape),
            tuple(rows.stride()),
            int(rows.storage_offset()),
            (0, 0, 0),
            rows.is_complex(),
        )

    def forget(self, tensor: Tensor) -> None:
        """Note that a storage holds something new."""
        self._copies.pop(storage_key(tensor), None)

    def _layout(self, tensor: Tensor) -> _Layout | None:
        key = storage_key(tensor)
        for layout in self._fixed.get(key, ()):
            if layout.covers(int(tensor.storage_offset())):
                return layout
        return self._copies.get(key)


def storage_key(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage while it lives; 0 where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def tensors(tree: object) -> Iterator[Tensor]:
    """Yield the tensors in an operation's arguments or results (nested lists and tuples).

    >>> import torch
    >>> [t.item() for t in tensors((torch.tensor(1), [torch.tensor(2), None]))]
    [1, 2]
    """
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors(part)


def _memory(parameter: Tensor) -> tuple[object, ...]:
    key = storage_key(parameter)
    if not key or parameter.numel() == 0:
        return (id(parameter),)
    return (key, parameter.storage_offset(), tuple(parameter.shape), tuple(parameter.stride()))


def _match(tensor: Tensor, layout: _Layout) -> Alias:
    """Find the axis of each dimension: by stride and size, by stride, then sizes of 1."""
    axes: list[int | None] = [None] * tensor.dim()
    free = list(range(len(layout.shape)))
    same_size = (True, False)
    for exact in same_size:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride())):
            if axes[dim] is not None or (size == 1 and not exact):
                continue
            for axis in free:
                fits = size == layout.shape[axis] if exact else size <= layout.shape[axis]
                if stride == layout.strides[axis] and fits:
                    axes[dim] = axis
                    free.remove(axis)
                    break
    for dim, size in enumerate(tensor.shape):
        unit = next((axis for axis in free if layout.shape[axis] == 1), None)
        if axes[dim] is None and size == 1 and unit is not None:
            axes[dim] = unit
            free.remove(unit)
    return _shown(tensor, layout, axes)


def _shown(tensor: Tensor, layout: _Layout, axes: list[int | None]) -> Alias:
    strange = any(
        axis is None and size != 1 and stride != 0
        for axis, size, stride in zip(axes, tensor.shape, tensor.stride())
    )
    sizes, start = [1] * len(layout.shape), list(layout.start)
    for dim, axis in enumerate(axes):
        if axis is not None:
            sizes[axis] = tensor.shape[dim]
    rest = tensor.storage_offset() - layout.offset
    for axis in sorted(range(len(start)), key=lambda a: -layout.strides[a]):
        step = layout.strides[axis]
        start[axis] += rest // step if step else 0
        rest %= step or 1
    whole = not strange and tuple(sizes) == layout.shape
    found = None if strange else tuple(axes)
    return Alias(layout.name, found, tuple(start), tuple(sizes), whole, _merged(tensor, layout))


def _merged(tensor: Tensor, layout: _Layout) -> tuple[tuple[int, ...], ...]:
    """Return the axes of which each dimension is made, outermost first; empty if unknown."""
    free = [axis for axis, size in enumerate(layout.shape) if size > 1]
    found = []
    for size, stride in zip(tensor.shape, tensor.stride()):
        axes: list[int] = []
        while size > 1:
            inner = next((a for a in free if layout.strides[a] == stride), None)
            if inner is None:
                return ()
            free.remove(inner)
            axes.insert(0, inner)
            own = layout.shape[inner]
            if size > own and size % own:
                return ()
            size, stride = max(1, size // own), stride * own
        found.append(tuple(axes))
    return tuple(found)
