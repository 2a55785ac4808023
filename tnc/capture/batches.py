"""Calibration batches: how a model is called with one, how many samples it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnc.errors import CaptureError

AS_ARGUMENTS = (
    "a batch is the model's arguments: a tuple those by position, a mapping those by name; of a "
    "loader's (x, y) give tnc.sources.Labelled((x,), y): the model sees x, a loss batch.labels"
)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of a batch: a mapping is kwargs, a tuple or list args, else one arg.

    >>> arguments({"x": 1}), arguments((1, 2)), arguments(3)
    (((), {'x': 1}), ((1, 2), {}), ((3,), {}))
    """
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def batches_of(given: Iterable[Any] | None, where: str = "calibration") -> tuple[Any, ...]:
    """Return calibration batches; none for None. Raises CaptureError for what is one batch.

    A tensor would be taken apart into its rows, a mapping into its keys.
    """
    if given is None:
        return ()
    if isinstance(given, Tensor | Mapping | str | bytes):
        raise CaptureError(
            f"{where} is one {type(given).__name__}, no batches",
            where=where,
            hint=f"{where}=[batch] for one, tensor.split(32) for several",
        )
    try:
        return tuple(given)
    except TypeError as error:
        if hasattr(given, "__iter__") or hasattr(given, "__getitem__"):
            raise
        raise CaptureError(
            f"{where} is of type {type(given).__name__}, no batches",
            where=where,
            hint="give a list of batches, or a DataLoader",
        ) from error


def call(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch. Raises CaptureError where it takes no such arguments."""
    return run(model, *arguments(batch))


def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a model. Raises CaptureError where it takes no such arguments."""
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        reason = misfit(model, args, kwargs)
        if not reason:
            raise
        raise CaptureError(
            f"the model fails on an input: {reason}", where=type(model).__name__, hint=AS_ARGUMENTS
        ) from error


def misfit(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Say why a model cannot be called with these arguments, whatever they hold; empty if it can.

    >>> misfit(nn.Sequential(), (1, 2), {})
    'Sequential takes no such arguments as 2 positional: too many positional arguments'
    """
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        told = [f"{len(args)} positional"] if args else []
        told += [f"{name}=" for name in kwargs]
        given = ", ".join(told) or "none"
        return f"{type(model).__name__} takes no such arguments as {given}: {error}"
    except ValueError:  # a forward without a signature
        return ""
    return ""


def sample_count(batch: Any) -> int:
    """Count the samples: the leading dimension of the first tensor of the batch."""
    args, kwargs = arguments(batch)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return 1


def kept_rows(batch: Any, masked: str | None) -> tuple[int, Tensor | None]:
    """Return the number of rows that a batch's mask speaks of, and the indices of those to keep.

    Without a mask, or one that keeps everything, there are no indices.
    """
    mask = batch.get(masked) if masked and isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return 0, None
    flat = mask.flatten().bool()
    return flat.numel(), None if bool(flat.all()) else flat.nonzero().squeeze(1)


def differentiable_batch(batch: Any) -> tuple[Any, list[Tensor]]:
    """Return the batch with floating-point tensors that require gradients, and these tensors."""
    leaves: list[Tensor] = []

    def lift(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1] * 1  # models may write into their input, not into a leaf
        return value

    with torch.enable_grad():
        if isinstance(batch, Mapping):
            return {key: lift(value) for key, value in batch.items()}, leaves
        if isinstance(batch, tuple | list):
            return tuple(lift(value) for value in batch), leaves
        return lift(batch), leaves


def held_back(batches: Sequence[Any], samples: Callable[[Any], int]) -> tuple[int, ...]:
    """Return the numbers of the batches that trials may be made on: every fourth, evenly spaced.

    None where there are too few: of fewer than 8 batches, 4 or more with 256 samples in all do.

    >>> held_back([[1]] * 8, len), held_back([[1] * 64] * 4, len), held_back([[1]] * 7, len)
    ((2, 6), (2,), ())
    """
    enough = len(batches) >= 8 or (len(batches) >= 4 and sum(map(samples, batches)) >= 256)
    return tuple(range(2, len(batches), 4)) if enough else ()


def some_of(batches: Sequence[Any], samples: int) -> tuple[Any, ...]:
    """Return evenly spaced batches of about `samples` samples in all, at least one.

    >>> some_of([[1, 2]] * 3, 1), len(some_of(list(range(10)), 5))
    (([1, 2],), 5)
    """
    total = sum(sample_count(batch) for batch in batches)
    count = min(len(batches), max(1, round(len(batches) * samples / max(1, total))))
    return tuple(batches[(2 * k + 1) * len(batches) // (2 * count)] for k in range(count))
