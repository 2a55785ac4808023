"""Models without memory: parameters on the meta device, buffers as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tnc.errors import SourceError
from tnc.sources.checkpoint import Checkpoint, Stored
from tnc.sources.source import Batch, Streamed


@contextmanager
def without_memory() -> Iterator[None]:
    """Let parameters of modules that are built in this block lie on the meta device.

    Buffers keep their values: many are computed when a model is built and are in no file.
    """
    register = nn.Module.register_parameter

    def onto_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    nn.Module.register_parameter = onto_meta  # type: ignore[method-assign, assignment]
    try:
        with _Unfilled():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _Unfilled(TorchFunctionMode):
    """Makes `torch.empty`, which layers begin their parameters with, take no memory at all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return for every entry of the state dict all names of its tensor, in order."""
    groups: dict[int, tuple[str, ...]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        groups[id(tensor)] = (*groups.get(id(tensor), ()), name)
    return {name: groups[id(tensor)] for name, tensor in state.items()}


def streamed(
    model: nn.Module,
    checkpoint: Checkpoint,
    renamed: Callable[[str], str] = str,
    inputs: Batch | None = None,
    tokenizer: Any = None,
    files: tuple[Path, ...] = (),
) -> Streamed:
    """Match a checkpoint with a model's state dict and read the buffers.

    `renamed` turns a name in the files into the model's. Raises SourceError for entries that the
    checkpoint has not, or has in another shape.
    """
    unknown = [n for n, b in model.named_buffers() if b.is_meta and n not in model.state_dict()]
    if unknown:
        raise SourceError(
            f"buffer {unknown[0]!r} is made by torch.empty and is in no checkpoint",
            hint="compile with --no-stream where memory allows",
        )
    by_name = {renamed(key): entry for key, entry in checkpoint.tensors.items()}
    held, left = _matched(tied_names(model), by_name)
    own = Checkpoint(held, checkpoint.identity)
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for name, stored in held.items():
        if tuple(state[name].shape) != stored.shape:
            raise SourceError(
                f"{name} has shape {stored.shape} in the checkpoint and "
                f"{tuple(state[name].shape)} in the model",
                where=str(stored.file),
                hint="config.json, or the function's kwargs, belong to another checkpoint",
            )
        if state[name].is_floating_point() and stored.dtype[0] not in "FB":
            raise SourceError(
                f"{name} holds {stored.dtype} in the checkpoint and {state[name].dtype} in the "
                "model",
                where=str(stored.file),
                hint="whole numbers are no trained weights: undo the quantization first",
            )
        if not isinstance(state[name], nn.Parameter):
            module, attribute = model, name
            if "." in name:
                path, _, attribute = name.rpartition(".")
                module = model.get_submodule(path)
            module._buffers[attribute] = own.read(name).to(state[name].dtype)
    told = f"{len(left)} tensors of the checkpoint are not used, such as {left[0]}" if left else ""
    notes = (told,) if told else ()
    return Streamed(model, inputs, tokenizer, files, checkpoint=own, notes=notes)


def _matched(
    ties: Mapping[str, tuple[str, ...]], stored: Mapping[str, Stored]
) -> tuple[dict[str, Stored], list[str]]:
    """Return what is stored by the state dict's names, and the names that nothing asks for."""
    held: dict[str, Stored] = {}
    missing = []
    for names in dict.fromkeys(ties.values()):
        key = next((name for name in names if name in stored), None)
        if key is not None:
            held[names[0]] = stored[key]
        elif not names[0].endswith("num_batches_tracked"):
            missing.append(names[0])
    if missing:
        raise SourceError(
            f"the checkpoint has no {missing[0]!r}"
            + (f" and {len(missing) - 1} more of the model's tensors" if missing[1:] else ""),
            hint="streaming takes tensors by their names: name the class in `auto` that the "
            "checkpoint was saved from, or save it again with save_pretrained",
        )
    return held, sorted(set(stored) - set(ties))
