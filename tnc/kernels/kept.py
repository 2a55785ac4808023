"""What is made of cores for many calls, and how it is known that a core has changed since.

A write through `core.data` changes neither the version nor the address of a core. So where memory
was copied, the core's memory is compared too: with a copy where it is small, else by its sum. On
other devices than the CPU the host would have to wait for that, so copies are never kept there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
SMALL = 1 << 17
"""Bytes up to which a copy of a core is compared; summing more is faster."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(slots=True, eq=False)
class Kept(Generic[Made]):
    """Something made of cores, while they do not change."""

    made: Made
    alive: tuple[Tensor, ...]
    """The cores' memory, held so that no other tensor can come to lie there."""
    stamp: list[object]
    """The address, version and strides of every core."""
    watches: tuple[Callable[[], bool], ...]
    """For every core that was copied, whether its memory is what it was."""

    @classmethod
    def of(cls, made: Made, cores: Iterable[Tensor], copied: Iterable[Tensor]) -> Kept[Made]:
        """Remember the cores; `copied` are those that `made` does not share memory with."""
        cores = tuple(cores)
        alive = tuple([core.detach() for core in cores])
        return cls(made, alive, _stamp(cores), tuple([_watch(c.detach()) for c in copied]))

    def holds(self, cores: Iterable[Tensor]) -> bool:
        """Whether no core was written to or got other memory."""
        try:
            if _stamp(cores) != self.stamp:
                return False
        except RuntimeError:  # tensors of inference mode do not count their versions
            return False
        return False not in [unchanged() for unchanged in self.watches]


@dataclass(eq=False)
class Shelf(Generic[Made]):
    """What was made of cores, by how it was made: at most so many things."""

    most: int = 64
    _held: dict[Hashable, Kept[Made]] = field(default_factory=dict)

    def take(
        self,
        how: Hashable,
        cores: Sequence[Tensor],
        make: Callable[[], Made],
        copied: Callable[[Made], Iterable[Tensor]],
    ) -> Made:
        """Return what was made so of these cores, or make it and keep it where it can be watched.

        `copied` tells which of the cores the thing does not share memory with.
        """
        found = self._held.get(how)
        if found is not None and found.holds(cores):
            return found.made
        self._held.pop(how, None)
        made = make()
        if can_watch(cores):
            if len(self._held) >= self.most:
                del self._held[next(iter(self._held))]
            self._held[how] = Kept.of(made, cores, copied(made))
        return made

    def forget(self) -> None:
        """Drop everything, and the memory that it holds."""
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)


def can_watch(cores: Iterable[Tensor]) -> bool:
    """Whether changes of cores can be seen: tensors of inference mode count no versions."""
    return not any(core.is_inference() or core.is_conj() or core.is_neg() for core in cores)


def apart(made: Tensor, cores: Iterable[Tensor]) -> list[Tensor]:
    """Return the cores whose memory a tensor does not share."""
    memory = made.untyped_storage().data_ptr()
    return [core for core in cores if core.untyped_storage().data_ptr() != memory]


def _stamp(cores: Iterable[Tensor]) -> list[object]:
    stamp: list[object] = []
    for core in cores:
        stamp += (core.data_ptr(), core._version, core.stride())
    return stamp


def _watch(core: Tensor) -> Callable[[], bool]:
    """Return a call that tells whether the memory of a core is still what it is now."""
    if not core.is_cpu:
        return lambda: False
    words = _words(core)
    if 0 < core.nbytes <= SMALL and words.is_contiguous():
        memory = words.numpy().data.cast("B")
        return partial(bytearray(memory).__eq__, memory)
    total = int(words.sum())
    return lambda: int(words.sum()) == total


def _words(core: Tensor) -> Tensor:
    """View a core's memory as whole numbers, the widest that fit."""
    if core.is_complex():
        core = torch.view_as_real(core)
    if core.is_contiguous() and core.nbytes % 8 == 0:
        return core.view(-1).view(torch.int64)
    return core.view(_WORDS[core.itemsize])
