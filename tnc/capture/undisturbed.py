"""Run a user's model for a look, and leave no trace of it.

The modes of all modules, buffers (counters, caches), parameters that a forward pass writes to
(`max_norm`), random generators and the fast path of attention are as before afterwards, also when
the forward pass raises.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.weights import storage_key
from tnc.errors import CaptureError


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model. Raises CaptureError where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be copied: {str(error).split('. ')[0]}",
            where=type(model).__name__,
            hint="copy.deepcopy(model) shows it; detach what it holds, or make it plain tensors",
        ) from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule in evaluation mode; give each its mode and attributes back afterwards.

    The flags are set, `train()` is not called: a model may override it to merge or to freeze.
    """
    saved = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, *_ in saved:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=_devices(model)):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, attributes, buffers, parameters in saved:
            _refill(vars(module), attributes)
            _refill(module._buffers, buffers)
            _refill(module._parameters, parameters)


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


def _refill(place: dict[str, Any], held: dict[str, Any]) -> None:
    place.clear()
    place.update(held)


def _devices(model: nn.Module) -> list[int]:
    found = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    return sorted(found)
