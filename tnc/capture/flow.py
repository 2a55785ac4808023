"""Which operation's result feeds which: values, their readers, and what the output depends on.

A value is what a storage holds between two writes; all views of it are one value. That is coarse
enough to be cheap and safe: a link is only claimed when one operation alone reads the value, in
full, through any view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tnc.capture.observe import COPIES
from tnc.capture.weights import storage_key, tensors

Geometry = tuple[int, tuple[int, ...], tuple[int, ...], int, str]


@dataclass(frozen=True)
class Shown:
    """A value as one operation sees it."""

    value: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def same_rows(self, other: Shown) -> bool:
        """Whether both show all vectors of the value in one order, up to flattened batch axes."""
        return (
            bool(self.shape and other.shape)
            and _numel(self.shape) == _numel(other.shape)
            and (self.shape[-1], self.strides[-1]) == (other.shape[-1], other.strides[-1])
        )


@dataclass(frozen=True)
class Step:
    """One operation: its role, the layer (`end`) that it belongs to, what it reads and makes."""

    role: str
    end: str
    data: Shown | None
    made: Shown | None
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    parameters: tuple[str, ...]


@dataclass
class Flow:
    """The record of a forward pass, as it grows."""

    steps: list[Step] = field(default_factory=list)
    _held: dict[int, int] = field(default_factory=dict)
    _copied: dict[Geometry, int] = field(default_factory=dict)
    _names: dict[Geometry, str] = field(default_factory=dict)
    _count: int = 0

    def value(self, tensor: Tensor) -> int:
        """The value that a tensor shows; a new one for a tensor from outside."""
        key = storage_key(tensor)
        if key not in self._held or not key:
            self._held[key] = self._fresh()
        return self._held[key]

    def shown(self, tensor: Tensor) -> Shown:
        """Describe how a tensor shows its value."""
        return Shown(self.value(tensor), tuple(tensor.shape), tuple(tensor.stride()))

    def name(self, tensor: Tensor) -> str:
        """Name what is read: equal names, one tensor (`Use.reads`)."""
        return self._names.setdefault(self._geometry(tensor), f"t{len(self._names)}")

    def add(
        self,
        op: str,
        args: Any,
        out: Any,
        layer: tuple[str, str, Tensor | None],
        parameters: tuple[str, ...],
    ) -> None:
        """Record an operation; its results become new values, also where it wrote in place.

        `layer` is the role, the module and the tensor that it transforms.
        """
        role, end, data = layer
        shown = None if data is None else self.shown(data)
        reads = tuple(dict.fromkeys(self.value(t) for t in tensors(args)))
        source = self._geometry(next(tensors(args))) if op in COPIES else None
        results = list(tensors(out))
        makes = tuple(self._make(t, source) for t in results)
        made = self.shown(results[0]) if results else None
        self.steps.append(Step(role, end, shown, made, reads, makes, parameters))

    def _make(self, tensor: Tensor, source: Geometry | None) -> int:
        key = storage_key(tensor)
        if source is None:
            self._held[key] = self._fresh()
        else:  # copies of one view in one layout are one value
            known = (*source[:4], f"{source[4]} {tensor.dtype} {tensor.stride()}")
            self._held[key] = self._copied.setdefault(known, self._fresh())
        return self._held[key]

    def _geometry(self, tensor: Tensor) -> Geometry:
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        return self.value(tensor), shape, strides, int(tensor.storage_offset()), str(tensor.dtype)

    def _fresh(self) -> int:
        self._count += 1
        return self._count


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
