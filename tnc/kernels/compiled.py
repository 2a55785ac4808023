"""Programs as functions: source that was emitted, executed once."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from tnc.kernels.choose import Choice
from tnc.kernels.emitters.torch_source import emit
from tnc.kernels.switch import switching, use

_NAMES: dict[str, Any] = {
    "mm": torch.mm,
    "bmm": torch.bmm,
    "addmm": torch.addmm,
    "use": use,
    "switching": switching,
}


@lru_cache(maxsize=8192)
def functions(source: str) -> dict[str, Any]:
    """Execute emitted source; tracebacks show its lines."""
    name = f"<tnc kernel {sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = dict(_NAMES)
    exec(compile(source, name, "exec"), namespace)
    return namespace


@dataclass(frozen=True)
class Kernel:
    """A choice, ready to run. Operands come in the layouts of the program."""

    choice: Choice

    @cached_property
    def forward(self) -> Callable[..., Tensor]:
        """`forward(x, *operands)` on rows `[n, inputs]`."""
        found: Callable[..., Tensor] = functions(self.source())["forward"]
        return found

    @cached_property
    def forward_bias(self) -> Callable[..., Tensor]:
        """`forward(x, *operands, bias)`."""
        found: Callable[..., Tensor] = functions(self.source(bias=True))["forward"]
        return found

    def backward(self, needs: tuple[str, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """`backward(dy, x, *operands)`; gradients in the order 'input', then products."""
        found = self._backward.get(needs)
        if found is None:
            found = self._backward[needs] = functions(self.source(needs=needs))["backward"]
        return found

    @cached_property
    def _backward(self) -> dict[tuple[str, ...], Callable[..., tuple[Tensor, ...]]]:
        return {}

    def source(self, *, bias: bool = False, needs: tuple[str, ...] = ()) -> str:
        """Return the source that runs."""
        return emit(self.choice.program, self.choice.way, bias=bias, needs=needs)
