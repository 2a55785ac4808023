"""Run a user's model for a look, and leave no trace of it.

The modes of all modules, buffers (counters, caches), parameters that a forward pass writes to
(`max_norm`), random generators and the fast path of attention are as before afterwards, also when
the forward pass raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tnc.capture.weights import storage_key


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode, and each back to its own mode afterwards.

    The flags are set, `train()` is not called: a model may override it to merge or to freeze.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in modes:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes:
            module.training = mode
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)


@contextmanager
def differentiable(model: nn.Module, wanted: set[int]) -> Iterator[list[nn.Parameter]]:
    """Let only the parameters with these ids require gradients; yield them; restore all flags."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        yield [p for p, _ in flags if id(p) in wanted]
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


class Backup:
    """Copies of the parameters and buffers that a forward pass writes to, made just before."""

    def __init__(self, model: nn.Module) -> None:
        self._state = {storage_key(t): t for t in (*model.parameters(), *model.buffers())}
        self._state.pop(0, None)
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def before_write(self, tensor: Tensor) -> None:
        """Keep a copy of what lies in this tensor's storage, if that belongs to the model."""
        key = storage_key(tensor)
        if key in self._state and key not in self._saved:
            with torch.no_grad():
                self._saved[key] = (self._state[key], self._state[key].detach().clone())

    def restore(self) -> None:
        """Write the copies back."""
        with torch.no_grad():
            for tensor, copy in self._saved.values():
                tensor.detach().copy_(copy)


def _devices(model: nn.Module) -> list[int]:
    found = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    return sorted(found)
