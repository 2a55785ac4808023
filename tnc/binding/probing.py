"""Probe gradients: the mean squared gradient of cores over a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, distributed, nn

from tnc.binding.weights import unwrapped, wrappers
from tnc.errors import BindError

Probe = Callable[[nn.Module], Iterable[Tensor]]
"""From a model to the losses of a few batches, made as in training."""

Gradients = tuple[Tensor | None, ...]


def squared_gradients(
    model: nn.Module, probe: Probe, cores: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the mean over batches of the squared gradient of every core, by name.

    The model is left as it was: gradients that were gathered, running statistics, random numbers.
    What DistributedDataParallel wraps is probed without the wrapper, whose hooks see whole backward
    passes only, and the gradients of a batch are averaged over its processes, as in training: each
    may yield its own batches, as many as the others. Raises BindError where the probe gives no
    loss, or none that depends on a core.
    """
    averaged = _averaging(model, cores)
    model = unwrapped(model)
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    totals: dict[str, Tensor] = {}
    count = 0
    try:
        with torch.random.fork_rng(devices=devices):
            for loss in probe(model):
                count += 1
                _add(totals, averaged(_gradients(loss, cores)), cores)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    if not count:
        raise BindError(
            "the probe gave no loss",
            hint="probe(model) yields the training loss of a few batches, four for example",
        )
    missing = [name for name in cores if name not in totals]
    if len(missing) == len(cores):
        raise BindError(
            "the probe's losses depend on no core",
            hint="probe(model) must run the model that it is given, not the one before compiling",
        )
    return {name: total / count for name, total in totals.items()}


def _averaging(
    model: nn.Module, cores: Mapping[str, nn.Parameter]
) -> Callable[[Gradients], Gradients]:
    """Return what averages gradients over the processes that train a model together."""
    kind = nn.parallel.DistributedDataParallel
    parallel = next((each for each in wrappers(model) if isinstance(each, kind)), None)
    if parallel is None:
        return lambda gradients: gradients
    group = parallel.process_group

    def averaged(gradients: Gradients) -> Gradients:
        present = torch.tensor([float(found is not None) for found in gradients])
        present = present.to(next(iter(cores.values())).device)
        distributed.all_reduce(present, group=group)
        means: list[Tensor | None] = []
        for found, core, count in zip(gradients, cores.values(), present.tolist()):
            mean = torch.zeros_like(core) if found is None else found.contiguous()
            if count:  # one process may have reached a core that another did not
                distributed.all_reduce(mean, group=group)
            means.append(mean.div_(group.size()) if count else None)
        return tuple(means)

    return averaged


def _gradients(loss: Tensor, cores: Mapping[str, nn.Parameter]) -> Gradients:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise BindError(
            f"the probe gave {type(loss).__name__} and no loss with a gradient",
            hint="probe(model) yields scalars that require gradients: loss(model(x), y)",
        )
    return torch.autograd.grad(loss, list(cores.values()), allow_unused=True)


def _add(
    totals: dict[str, Tensor],
    gradients: Gradients,
    cores: Mapping[str, nn.Parameter],
) -> None:
    for name, found in zip(cores, gradients):
        if found is None:
            continue
        if not bool(torch.isfinite(found).all()):
            raise BindError("a probe gradient is not finite", where=name)
        square = (found * found.conj()).real if found.is_complex() else found.float().square()
        totals[name] = totals[name] + square if name in totals else square
