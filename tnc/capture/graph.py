"""Graphs on which passes match: from torch.export, else torch.fx module by module, else none.

Graphs are for analysis: their nodes name parameters by path, and edits land in the user's modules.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from tnc.capture.trace import Traced
from tnc.capture.weights import tensors


def graphs(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Traced, ...]:
    """Return graphs of the model or of its largest parts that can be traced, in module order.

    The model must be in evaluation mode (`undisturbed.evaluating`). Raises nothing: what no way
    takes is an entry without a graph.
    """
    try:
        return (Traced("", "export", _exported(model, args, dict(kwargs))),)
    except Exception as error:
        return tuple(_symbolic("", model, f"export: {_first_line(error)}"))


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    with warnings.catch_warnings(), _quiet(), _tensors_only(model), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, args, kwargs, strict=False)
        made = program.module(check_guards=False)
    assert isinstance(made, fx.GraphModule)
    return made


@contextmanager
def _tensors_only(model: nn.Module) -> Iterator[None]:
    """Let the model return the tensors that it returns: export knows no key-value caches."""
    forward, own = model.forward, vars(model).get("forward")

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return tuple(escaping(forward(*args, **kwargs)))

    vars(model)["forward"] = call
    try:
        yield
    finally:
        del vars(model)["forward"]
        if own is not None:
            vars(model)["forward"] = own


def escaping(tree: Any, depth: int = 8) -> Iterator[torch.Tensor]:
    """Yield the tensors that an object holds: in containers, and in attributes of any object."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif depth and isinstance(tree, dict):
        for part in tree.values():
            yield from escaping(part, depth - 1)
    elif depth and isinstance(tree, list | tuple | set):
        for part in tree:
            yield from escaping(part, depth - 1)
    elif depth and hasattr(tree, "__dict__") and not isinstance(tree, nn.Module | type):
        yield from escaping(vars(tree), depth - 1)


def remembered(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the tensors that modules keep as plain attributes (caches, last hidden states)."""
    for module in model.modules():
        for value in vars(module).values():
            if not isinstance(value, nn.Module):
                yield from tensors(value)


def _symbolic(path: str, module: nn.Module, reason: str) -> Iterator[Traced]:
    """Trace a module by torch.fx; where that fails, keep it as a container and try its children."""
    tracer = fx.Tracer()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(module)
        yield Traced(path, "symbolic", fx.GraphModule(tracer.root, graph, type(module).__name__))
        return
    except Exception as error:
        told = f"symbolic: {_first_line(error)}"
        yield Traced(path, "recorded", None, f"{reason}; {told}" if reason else told)
    for name, child in module.named_children():
        if any(True for _ in child.parameters()):
            yield from _symbolic(f"{path}.{name}" if path else name, child, "")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.export logs and prints: a failure is an entry of the trace."""
    logger = logging.getLogger("torch")
    level, nowhere = logger.level, io.StringIO()
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logger.setLevel(level)
