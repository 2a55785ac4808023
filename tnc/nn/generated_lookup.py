"""Embeddings through generated look-ups, where tensors are plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from tnc.kernels.applied import DTYPES
from tnc.kernels.choose import bucket
from tnc.kernels.kept import Kept, Shelf
from tnc.kernels.lookups.choose import LookUpChoice, LookUpTask, bind, choices
from tnc.kernels.lookups.program import lays
from tnc.kernels.operands import Lay, held, lay
from tnc.kernels.ready import by_address
from tnc.net import Network, Structure
from tnc.nn.generated import is_plain

NUMBERS = (torch.int64, torch.int32)


@dataclass(eq=False)
class Ready:
    """A look-up for one bucket of numbers, and its operands while the cores do not change."""

    choice: LookUpChoice
    lays: tuple[Lay, ...]
    laid: Shelf[Tensor]
    most: int
    kept: Kept[tuple[Tensor, ...]] | None = None
    calls: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """Loops bound to the operands, by how many numbers they take."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The cores by which kept operands are known to be fresh."""
        return tuple(dict.fromkeys(name for how in self.lays for name in how.cores))

    def run(self, cores: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Look numbers `x[n]` up without gradients."""
        kept = self.kept
        if kept is None or not kept.holds([cores[name] for name in self.names]):
            self.forget()
            kept = self.kept = held(self.lays, cores, self.laid)
        if kept is None:
            return self.choice.forward(x, *(lay(how, cores) for how in self.lays))
        if self.choice.looped and by_address(x) and self._inside(x):
            call = self.calls.get(x.size(0))
            if call is None:
                call = self.calls[x.size(0)] = bind(self.choice, kept.made, x.size(0))
            return call(x if x.dtype is torch.int64 else x.long())
        return self.choice.forward(x, *kept.made)

    def _inside(self, x: Tensor) -> bool:
        """Whether all numbers are rows of the table: loops read memory and would not notice."""
        numbers: list[int] = x.tolist()
        return min(numbers) >= 0 and max(numbers) < self.most

    def train(self, cores: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Look numbers up, differentiable in the cores."""
        return self.choice.forward(x, *(lay(how, cores) for how in self.lays))

    def forget(self) -> None:
        """Drop the operands, and the memory that they hold."""
        self.kept, self.calls = None, {}


@dataclass(eq=False)
class LookedUp:
    """One network, with a look-up for every bucket of numbers and dtype met."""

    network: Network
    most: int
    """Rows of the table, without padding."""
    _ready: dict[tuple[int, bool, torch.dtype], Ready] = field(default_factory=dict)
    _laid: Shelf[Tensor] = field(default_factory=Shelf)

    def __call__(self, cores: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        """Look numbers `x[n]` up."""
        dtype = next(iter(cores.values())).dtype
        ready = self._ready.get(((x.size(0) - 1).bit_length(), training, dtype))
        if ready is None:
            ready = self.prepare(x.size(0), training, dtype)
        return ready.train(cores, x) if training else ready.run(cores, x)

    def task(self, rows: int, training: bool, dtype: torch.dtype) -> LookUpTask:
        """Return what is chosen for when so many numbers come here and now."""
        threads = torch.get_num_threads()
        return LookUpTask(self.network, bucket(rows), DTYPES[dtype], threads, training)

    def prepare(self, rows: int, training: bool, dtype: torch.dtype) -> Ready:
        """Choose the look-up of a bucket, and use it from now on."""
        choice = choices(self.task(rows, training, dtype))[0]
        made = Ready(choice, lays(self.network, choice.program), self._laid, self.most)
        self._ready[(rows - 1).bit_length(), training, dtype] = made
        return made

    def forget(self) -> None:
        """Drop kept operands; they are made anew at the next call."""
        self._laid.forget()
        for ready in self._ready.values():
            ready.forget()


@dataclass(frozen=True, eq=False)
class LookUpPart:
    """One network of the sum."""

    applied: LookedUp


@dataclass(frozen=True, eq=False)
class GeneratedLookUp:
    """Rows of a table without sparse cores; `padding_idx` gets no gradient."""

    structure: Structure
    padding_idx: int | None

    @cached_property
    def parts(self) -> tuple[LookUpPart, ...]:
        """The networks, each with its look-ups."""
        (most,) = self.structure.signature.outputs
        return tuple(LookUpPart(LookedUp(term, most)) for term in self.structure.terms)

    @staticmethod
    def of(structure: Structure, padding_idx: int | None) -> GeneratedLookUp | None:
        """Return the look-ups of a structure that has some."""
        if structure.stored or any(term.equation.shared for term in structure.terms):
            return None
        return GeneratedLookUp(structure, padding_idx)

    def takes(self, x: Tensor) -> bool:
        """Whether generated look-ups run here: plain numbers on the CPU, neither traced nor so."""
        return type(x) is Tensor and x.dtype in NUMBERS and x.is_cpu and is_plain("cpu")

    def fits(self, core: Tensor | None, x: Tensor) -> bool:
        """Whether the cores, of which this is the first, have a dtype and device with kernels."""
        return core is not None and core.dtype in DTYPES and core.is_cpu

    def forget(self) -> None:
        """Drop what was made of the cores for inference, and the memory that it holds."""
        for part in self.parts:
            part.applied.forget()

    def run(self, cores: Mapping[str, Tensor], bias: Tensor | None, x: Tensor) -> Tensor:
        """Look numbers of any shape up, but not none of them."""
        (width,) = self.structure.signature.inputs
        flat = x.reshape(-1)
        flat = flat if flat.is_contiguous() else flat.contiguous()
        training = torch.is_grad_enabled() and any(core.requires_grad for core in cores.values())
        total: Tensor | None = None
        for part in self.parts:
            names = [core.name for core in part.applied.network.equation.cores]
            y = part.applied({name: cores[name] for name in names}, flat, training)
            y = y if y.size(-1) == width else y.narrow(-1, 0, width)
            total = y if total is None else total + y
        assert total is not None
        return without_gradient(total.view(*x.shape, width), x, self.padding_idx)


def without_gradient(y: Tensor, x: Tensor, padding_idx: int | None) -> Tensor:
    """Cut the gradient of the rows of one number."""
    if padding_idx is None or not y.requires_grad:
        return y
    return torch.where((x == padding_idx).unsqueeze(-1), y.detach(), y)
