"""Watch one real forward pass, operation by operation.

Why a forward pass, and not an exported graph, is the source of sites: it always exists. Export
and symbolic tracing fail on data-dependent control flow, unknown output types or exotic calls,
while a dispatch mode sees every operation below all of that, with real tensors: `nn.Linear`,
`F.linear`, `x @ w`, `einsum` and attention's packed projections all arrive as the same few matrix
products. Row counts, the tensors that are shared, and what feeds what come with it. Only the graph
on which passes match comes from export (`tnc.capture.graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tnc.capture.undisturbed import Backup
from tnc.capture.weights import Weights, storage_key, tensors
from tnc.errors import CaptureError

COPIES = frozenset({"aten.clone", "aten._to_copy"})


class Places:
    """The path of the module whose forward is running; calls by path."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self.stack: list[str] = []
        self.failed: str | None = None
        self.calls: dict[str, int] = {}

    @property
    def here(self) -> str:
        """The innermost running module; empty for the model itself."""
        return self.stack[-1] if self.stack else ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the calls through hooks that are global, so that no module is touched."""
        before = hooks.register_module_forward_pre_hook(self._enter)
        after = hooks.register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is not None:
            self.stack.append(path)
            self.calls[path] = self.calls.get(path, 0) + 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        path = self._paths.get(id(module))
        if path is not None and self.stack and path in self.stack:
            while self.stack.pop() != path:
                pass


@dataclass(frozen=True)
class Event:
    """One operation below autograd: `op` such as aten.addmm, the module that runs, its seconds."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    place: str
    seconds: float


class Listener(Protocol):
    """What wants to hear of operations."""

    def before(self) -> None:
        """Hear that an operation is about to start: earlier results have their gradients."""

    def step(self, event: Event) -> None:
        """Hear of an operation that is no view and no copy of a parameter."""


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tell a listener of every operation that computes; follow copies of parameters."""

    def __init__(self, weights: Weights, places: Places, backup: Backup, to: Listener) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_gpu = any(p.is_cuda for p in weights.parameters.values())
        self._weights, self._places, self._backup, self._to = weights, places, backup, to

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._to.before()
        with self:  # under inference_mode composite operations arrive whole
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        op = str(func.overloadpacket)
        self._save_written(func, args, kwargs)
        out, seconds = self._run(func, args, kwargs)
        event = Event(op, args, kwargs, out, self._places.here, seconds)
        self._hear(event, func._schema.is_mutable)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
        try:
            synchronise(self._on_gpu)
            started = perf_counter()
            out = func(*args, **kwargs)
            synchronise(self._on_gpu)
            return out, perf_counter() - started
        except Exception:
            self._places.failed = self._places.failed or self._places.here
            raise

    def _save_written(self, func: Any, args: Any, kwargs: Any) -> None:
        if not func._schema.is_mutable:
            return
        for position, spec in enumerate(func._schema.arguments):
            if spec.alias_info is not None and spec.alias_info.is_write:
                given = args[position] if position < len(args) else kwargs.get(spec.name)
                for tensor in tensors(given):
                    self._backup.before_write(tensor)

    def _hear(self, event: Event, writes: bool) -> None:
        results = list(tensors(event.out))
        read = {storage_key(t) for t in tensors((event.args, event.kwargs))} - {0}
        made = [t for t in results if storage_key(t) not in read]
        if results and read and not made and not writes:
            return  # a view
        for tensor in made:
            self._weights.forget(tensor)
        if event.op in COPIES and made and self._weights.name_of(event.args[0]):
            self._weights.follow(made[0], event.args[0])
            return
        if made and _picks(event) and self._weights.parameter_of(event.args[0], 3):
            self._weights.gather(made[0], event.args[0])
            return
        self._to.step(event)


def _picks(event: Event) -> bool:
    """Whether an operation picks whole matrices of a stack by their numbers."""
    if event.op == "aten.index_select":
        return bool(event.args[1] == 0)
    return event.op == "aten.index" and len(event.args[1]) == 1 and event.args[1][0].dim() == 1


def synchronise(on_gpu: bool) -> None:
    """Wait for the GPU, where there is one, so that a clock reads what has been done."""
    if on_gpu:
        torch.cuda.synchronize()


@contextmanager
def _plain_recurrence(model: nn.Module) -> Iterator[None]:
    """Run recurrent layers as the matrix products that their fused kernels are made of."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    switch: Any = torch.backends.mkldnn.set_flags
    cudnn, (fused, *_) = torch.backends.cudnn.enabled, switch(False)
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        switch(fused)
        torch.backends.cudnn.enabled = cudnn


def observe(
    model: nn.Module,
    weights: Weights,
    to: Listener,
    call: Callable[[], Any],
    around: Callable[[], Any] = torch.no_grad,
) -> tuple[Any, Mapping[str, int]]:
    """Run `call` with a listener; return its result and the calls of every module by path.

    The model must be in evaluation mode (`undisturbed.evaluating`). Raises CaptureError, with the
    module, when the forward pass fails.
    """
    places, backup = Places(model), Backup(model)
    try:
        with (
            places.watching(),
            torch.compiler.set_stance("force_eager"),
            _plain_recurrence(model),
            around(),
            Observer(weights, places, backup, to),
        ):
            return call(), places.calls
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model fails on an input: {type(error).__name__}: {error}",
            where=f"module {places.failed!r}" if places.failed else type(model).__name__,
            hint="call the model with the same arguments to see the full traceback",
        ) from error
    finally:
        backup.restore()
