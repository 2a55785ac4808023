"""A kernel that was chosen, ready to run: its operands are kept while the cores do not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tnc.kernels.choose import Choice
from tnc.kernels.compiled import Kernel
from tnc.kernels.kept import Kept, Shelf, apart, can_watch
from tnc.kernels.operands import Lay, held, lay, lays
from tnc.kernels.trainer import Trainer, trained
from tnc.net import Network

_BINDINGS: Any = torch._C
_dispatch_modes = _BINDINGS._len_torch_dispatch_stack
_function_modes = _BINDINGS._len_torch_function_stack


def by_address(x: Tensor) -> bool:
    """Whether memory may be read without torch: no mode watches its operations."""
    return not (_dispatch_modes() or _function_modes() or x.is_neg())


@dataclass(eq=False)
class Ready:
    """A kernel for one bucket of rows, and its operands while the cores do not change."""

    kernel: Kernel
    network: Network
    lays: tuple[Lay, ...]
    names: tuple[str, ...]
    """The cores by which kept operands are known to be fresh."""
    trainer: Trainer
    laid: Shelf[Tensor] = field(default_factory=Shelf)
    """Operands, which buckets of rows that lay one alike have in common."""
    kept: Kept[tuple[Tensor, ...]] | None = None
    views: Kept[tuple[Tensor | None, ...]] | None = None
    """On CUDA the operands that are views of cores; None where one is a copy."""
    calls: dict[tuple[int, int | None], Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """Loops bound to the operands and a bias, by rows and where the bias lies."""

    def run(self, cores: Mapping[str, Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply to rows `[n, inputs]` without gradients."""
        if x.is_cuda:
            return self.kernel.applied(self._on_device(cores), x, bias)
        kept = self.kept
        if kept is None or not kept.holds([cores[name] for name in self.names]):
            kept = self._keep(cores)
        operands = [lay(how, cores) for how in self.lays] if kept is None else kept.made
        if kept is not None and self.kernel.looped and by_address(x):
            key = (x.size(0), None if bias is None else bias.data_ptr())
            call = self.calls.get(key)
            if call is None:
                call = self.calls[key] = self.kernel.bind(operands, bias, x.shape[0])
            return call(x)
        return self.kernel.applied(operands, x, bias)

    def _keep(self, cores: Mapping[str, Tensor]) -> Kept[tuple[Tensor, ...]] | None:
        """Make the operands that have changed; None where changes of the cores are not seen."""
        self.forget()
        self.kept = held(self.lays, cores, self.laid)
        return self.kept

    def _on_device(self, cores: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """Return the operands on CUDA: views of cores are kept, copies are made at each call.

        To learn whether values were written through `core.data` the host would have to wait.
        """
        own = [cores[name] for name in self.names]
        if self.views is None or not self.views.holds(own):
            laid = [lay(how, cores).detach() for how in self.lays]
            if not can_watch(own):
                return laid
            views = [
                None if apart(operand, [cores[name] for name in how.cores]) else operand
                for how, operand in zip(self.lays, laid)
            ]
            self.views = Kept.of(tuple(views), own, ())
        return [
            lay(how, cores) if view is None else view
            for how, view in zip(self.lays, self.views.made)
        ]

    def forget(self) -> None:
        """Drop the operands, and the memory that they hold."""
        self.kept, self.views, self.calls = None, None, {}

    def train(self, cores: Mapping[str, Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        """Apply with gradients of the input, the cores and the bias."""
        return trained(self.trainer, [cores[name] for name in self.names], x, bias)


def readied(network: Network, choice: Choice, laid: Shelf[Tensor] | None = None) -> Ready:
    """Return a choice ready to run; `laid` are operands that are shared with other buckets."""
    found = lays(network, choice.program)
    names = tuple(dict.fromkeys(name for how in found for name in how.cores))
    kernel = Kernel(choice)
    trainer = Trainer(kernel, network, found, names)
    return Ready(kernel, network, found, names, trainer, Shelf() if laid is None else laid)
