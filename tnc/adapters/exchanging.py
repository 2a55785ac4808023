"""Give a delta other cores in training: its layer, its peers and the optimizers follow."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tnc.adapters.delta import Delta, peers
from tnc.adapters.training_step import TrainingStep
from tnc.errors import BindError
from tnc.net import Structure
from tnc.optim import Maps, form_of, move_, refusal
from tnc.optim.kinds import OURS


@torch.no_grad()
def exchange_(
    at: TrainingStep,
    delta: Delta,
    values: Mapping[str, Tensor],
    maps: Mapping[str, Maps],
    structure: Structure | None = None,
    positions: Mapping[str, Tensor] | None = None,
) -> str:
    """Give cores new values; return of which the optimizer's state was dropped, and why, or ''.

    `values` may have other shapes with a new `structure`. State of a core moves by its `maps`, by
    axis as in `tnc.optim.move_`; of a trained core without maps, and where an optimizer cannot
    follow, it is dropped. Raises BindError where shapes change in a process group, as
    DistributedDataParallel would go on with the old parameters.
    """
    old = dict(delta.cores)
    changed = [n for n in values if n not in old or old[n].shape != values[n].shape]
    if changed and _processes() > 1:
        raise BindError(
            f"core {changed[0]} changes its shape, which its replicas would not learn of",
            where=delta.site.name,
            hint="let this event happen after distributed training, or train in one process",
        )
    like = next(iter(old.values()))
    cores, dropped = dict(old), []
    for name, value in values.items():
        if name in changed:
            own = structure is not None and structure.kinds[name] == "trainable"
            made = value.detach().to(like).clone(memory_format=torch.contiguous_format)
            cores[name] = nn.Parameter(made, requires_grad=own)
        else:
            old[name].copy_(value)
        if name in old:
            reason = _follow_(at, old[name], cores[name], maps.get(name))
            dropped += [f"{name} ({reason})"] if reason else []
    if structure is not None:
        for peer in peers(at.model, delta):
            peer.layer.restructure_(
                structure, {name: cores[name] for name in structure.shapes}, positions
            )
    return f"state dropped: {', '.join(dropped)}" if dropped else ""


def _follow_(at: TrainingStep, old: nn.Parameter, new: nn.Parameter, maps: Maps | None) -> str:
    """Move or drop the state of a core; say why it was dropped."""
    holder = at.holder(old)
    if holder is None:
        return ""
    reason = "its entries are others now" if maps is None else refusal(holder, old)
    if not reason and maps is not None:
        move_(holder, old, new, maps)
        return ""
    drop_(holder, old, new)
    return reason


def drop_(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter in the place of another, or keep it, with the state of a first step.

    What `tnc.bind` keeps of a core, its share of the weight's decay, stays.
    """
    state = optimizer.state.pop(old, {})
    for group in optimizer.param_groups:
        if not any(p is old for p in group["params"]):
            continue
        group["params"][:] = [new if p is old else p for p in group["params"]]
        kept = {slot: state[slot] for slot in state if slot in OURS}
        try:
            form = form_of(optimizer, group)
        except BindError:  # of an unknown form: it makes its state itself, as at a first step
            return
        if kept or form.eager:
            optimizer.state[new] = form.initial(new, group) | kept


def _processes() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1
