"""What starts are computed from: gradients of weights at bounded memory, moments of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters.attach import attach_
from tnc.adapters.bank import bank_of, remove_bank_
from tnc.adapters.equations import chain, legs
from tnc.adapters.method import Method, Parts, Start
from tnc.adapters.place import Place
from tnc.capture.batches import call
from tnc.capture.undisturbed import evaluating
from tnc.decide.site import Site
from tnc.errors import CaptureError, PlanError
from tnc.net import Structure

Loss = Callable[[Any, Any], Tensor]
"""`loss(output, batch)` returns a scalar."""

PROBE = "_gradient"
LIMIT = 1 << 30


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


def gradients(
    model: nn.Module,
    places: Sequence[Place],
    batches: Iterable[Any],
    loss: Loss = output_loss,
    limit: int = LIMIT,
) -> Iterator[tuple[Place, Tensor]]:
    """Yield for each place the mean gradient of the loss over batches, as a map.

    At most `limit` bytes of gradients are held at once (one weight's at least): the batches are run
    again for each part of the weights. In evaluation mode, so dropout does not act; adapters that
    are there take part. In a process group of torch.distributed the mean is over all members.
    """
    kept = batches if isinstance(batches, Sequence) else tuple(batches)
    if not kept:
        raise CaptureError("there is no calibration batch", hint="give at least one batch")
    for part in _parts(places, limit):
        yield from _gradients(model, part, kept, loss)


def _parts(places: Sequence[Place], limit: int) -> Iterator[list[Place]]:
    part: list[Place] = []
    held = 0
    for place in places:
        size = 4 * place.site.signature.parameters
        if part and held + size > limit:
            yield part
            part, held = [], 0
        part.append(place)
        held += size
    if part:
        yield part


def _gradients(
    model: nn.Module, places: Sequence[Place], batches: Sequence[Any], loss: Loss
) -> Iterator[tuple[Place, Tensor]]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    probes = []
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for place in places:
            structure = _Dense().structure(place.site)
            zeros = Parts({"D": torch.zeros(structure.shapes["D"])})
            probes.append(attach_(model, place, PROBE, _Dense(), structure, zeros))
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                value = loss(call(model, batch), batch)
                if value.dim() or not value.requires_grad:
                    raise PlanError(
                        "the loss is no scalar that depends on the adapted weights",
                        hint="return loss(output, batch) as one number, without detach",
                    )
                (value / len(batches)).backward()  # type: ignore[no-untyped-call]
        for place, probe in zip(places, probes):
            found = probe.cores["D"].grad
            shape = (*legs(place.site.signature)[0].values(), *place.site.signature.inputs)
            total = torch.zeros(shape) if found is None else found.reshape(shape)
            yield place, _averaged(total)
            probe.cores["D"].grad = None
    finally:
        _detach_(model)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _averaged(gradient: Tensor) -> Tensor:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return gradient


def _detach_(model: nn.Module) -> None:
    for module in list(model.modules()):
        bank = bank_of(module)
        if bank is not None:
            bank.drop(PROBE)
            if not bank.names:
                remove_bank_(module)
