"""What starts are computed from: gradients of weights and moments of inputs, at bounded memory.

A dense delta of zeros stands beside the weight, whatever the weight is: its gradient is that of the
weight, also of one made of cores, and what it is multiplied with is the weight's input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.attach import attach_
from tnc.adapters.bank import bank_of, banks_of
from tnc.adapters.delta import Delta
from tnc.adapters.equations import chain
from tnc.adapters.installing import remove_bank_
from tnc.adapters.method import Method
from tnc.adapters.place import Place
from tnc.adapters.start import Parts, Start
from tnc.capture import measure
from tnc.capture.batches import call
from tnc.capture.undisturbed import evaluating
from tnc.decide.site import Site
from tnc.errors import CaptureError, PlanError
from tnc.net import Structure

Loss = Callable[[Any, Any], Tensor]
"""`loss(output, batch)` returns a scalar."""

PROBE = "_probe"
LIMIT = 1 << 30
"""How many bytes of gradients or moments are held at once, if one weight's are not more."""


class _Dense(Method):
    """A dense delta of zeros, whose gradient is that of the weight."""

    def structure(self, site: Site) -> Structure:
        return chain(site.signature, ("D", "o i"))

    def start(self, at: Start) -> Parts:
        return Parts({"D": at.zeros("D")})


def output_loss(output: Any, batch: Any) -> Tensor:
    """Return the loss that a model's output carries, as those of transformers do with labels."""
    found = getattr(output, "loss", None)
    if found is None and isinstance(output, Mapping):
        found = output.get("loss")
    if not isinstance(found, Tensor):
        raise CaptureError(
            "the model's output carries no loss",
            hint="give loss=function of (output, batch), or batches with labels",
        )
    return found


def check_loss(loss: Any) -> None:
    """Raise PlanError for what cannot be called as `loss(output, batch)`."""
    reason = "" if callable(loss) else f"it is of type {type(loss).__name__}"
    try:
        if not reason:
            inspect.signature(loss).bind(None, None)
    except TypeError as error:
        reason = str(error)
    except ValueError:  # a built-in function without a signature
        return
    if reason:
        raise PlanError(
            f"the loss cannot be called with an output and a batch: {reason}",
            where="loss",
            hint="give a function of (output, batch) that returns one number; it may ignore batch",
        )


def gradients(
    model: nn.Module,
    places: Sequence[Place],
    batches: Sequence[Any],
    loss: Loss = output_loss,
    limit: int = LIMIT,
) -> Generator[tuple[Place, Tensor]]:
    """Yield for each place the mean gradient of the loss over batches, as a map.

    Sums are in float32 or wider, whatever the weight is. At most `limit` bytes of gradients are
    held at once (one weight's at least), if the caller lets go of what was yielded: the batches are
    run again for each part of the weights. In evaluation mode, so dropout does not act and
    transformers do not recompute; adapters that are active take part. Which tokens and samples
    count is the loss's business. A batch counts as one, however many samples it has. In a process
    group of torch.distributed the mean is over all members too. Raises CaptureError where there is
    no batch, PlanError where the loss is no scalar, or depends on none of the weights of a part.
    """
    if not batches:
        raise CaptureError("there is no calibration batch", hint="give at least one batch")
    for part in parted(places, limit, gradient_bytes):
        yield from _gradients(model, part, batches, loss)


def moments(model: nn.Module, places: Sequence[Place], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return by weight E[x x^T] of its inputs, float64, or its diagonal where they are many.

    See `tnc.capture.Measured.moment`. Rows that a batch's `attention_mask` leaves out do not count.
    In a process group of torch.distributed it is the mean over all members. A weight whose inputs
    cannot be seen has none: of a convolution in groups, of a structured weight that code reads
    itself, of a structured transposed convolution.
    """
    with probing(model, [place for place in places if place.structured]):
        names = {id(p): name for name, p in model.named_parameters()}
        sites = {place.site.name: _observed(model, place, names) for place in places}
        found = measure(model, list(sites.values()), batches)
        seen = {name: found.of(site.name).moment for name, site in sites.items()}
    return {name: averaged(moment) for name, moment in seen.items() if moment is not None}


def _observed(model: nn.Module, place: Place, names: Mapping[int, str]) -> Site:
    """Return the site whose parameter meets the inputs of a place: its own, or its probe."""
    if not place.structured:
        return place.site
    name = names[id(_probe_of(model, place).cores["D"])]
    return replace(place.site, name=name, aliases=(name,))


def parted(
    places: Sequence[Place], limit: int, size: Callable[[Place], int]
) -> Iterator[list[Place]]:
    """Divide places in order into parts whose sizes are `limit` at most, or one place."""
    part: list[Place] = []
    held = 0
    for place in places:
        if part and held + size(place) > limit:
            yield part
            part, held = [], 0
        part.append(place)
        held += size(place)
    if part:
        yield part


def gradient_bytes(place: Place) -> int:
    """Return the bytes that a weight's gradient has here."""
    return max(4, place.site.itemsize) * place.site.signature.parameters


def moment_bytes(place: Place) -> int:
    """Return the bytes that the second moment of a weight's inputs has at most."""
    return 8 * prod(place.site.signature.inputs) ** 2


def _gradients(
    model: nn.Module, places: Sequence[Place], batches: Sequence[Any], loss: Loss
) -> Generator[tuple[Place, Tensor]]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with probing(model, places) as probes:
            with evaluating(model), torch.enable_grad(), _recurrent_backward(model):
                for batch in batches:
                    _backward(loss(call(model, batch), batch))
            for place, probe in zip(places, probes):
                yield place, _taken(probe, len(batches))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _backward(value: Tensor) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise PlanError(
            "the loss is no scalar that depends on the adapted weights",
            hint="return loss(output, batch) as one number, without detach; a reentrant"
            " torch.utils.checkpoint hides weights, use_reentrant=False does not",
        )
    value.sum().backward()  # type: ignore[no-untyped-call]


def _taken(probe: Delta, count: int) -> Tensor:
    """Return the gradient of a probe over a count of batches, and leave none behind."""
    core = probe.cores["D"]
    found, core.grad = core.grad, None
    if found is None:  # as autograd says of what plays no part
        found = torch.zeros(core.shape, dtype=core.dtype, device=core.device)
    return averaged(found.div_(count)).reshape(probe.site.signature.shape)


@contextmanager
def probing(model: nn.Module, places: Sequence[Place]) -> Iterator[list[Delta]]:
    """Put dense deltas of zeros beside weights. Their zeros are one number, shown in all places."""
    probes = []
    method = _Dense()
    try:
        for place in places:
            structure = method.structure(place.site)
            weight = place.weight(model)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            zero = torch.zeros((), dtype=dtype, device=weight.device)
            core = nn.Parameter(zero.expand(structure.shapes["D"]))
            probes.append(attach_(model, place, PROBE, method, structure, Parts({"D": core})))
        yield probes
    finally:
        _detach_(model)


def _probe_of(model: nn.Module, place: Place) -> Delta:
    bank = bank_of(model.get_submodule(place.owners[0].path))
    assert bank is not None
    return bank.held(PROBE)[place.owners[0].attribute]


def averaged(tensor: Tensor) -> Tensor:
    """Return the mean over the members of the process group, where there is one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
        tensor /= distributed.get_world_size()
    return tensor


@contextmanager
def _recurrent_backward(model: nn.Module) -> Iterator[None]:
    """Let recurrent layers on a GPU be differentiated in evaluation mode: cuDNN's cannot."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
        yield


def _detach_(model: nn.Module) -> None:
    for module, bank in list(banks_of(model)):
        bank.drop(PROBE)
        if not bank.names:
            remove_bank_(module)
