"""A new optimizer of a compiled model, before it loads the state of a bound one or trains."""

from __future__ import annotations

import torch
from torch import nn

from tnc.binding.draft import laid_out
from tnc.binding.weights import weights_of
from tnc.optim import following
from tnc.optim.forms import form_of


def follow(
    optimizer: torch.optim.Optimizer, model: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Let an optimizer do for cores what `tnc.bind` makes one do; return it.

    Call it on an optimizer into which the state of a bound one is loaded, before or after loading:
    decoupled weight decay then goes on meaning the same on a product of cores, and warming up goes
    on. With the compiled `model`, parameters without state get it whole and cores their share of
    the decay, as when a compiled model is trained from its start, or as a flattened distributed
    checkpoint needs it: that loads only what is there already.

    >>> import torch, tnc
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> made = tnc.compile(net, spec, example=torch.ones(2, 16)).model
    >>> adam = tnc.follow(torch.optim.AdamW(made.parameters()), made)
    >>> adam.state[made[0].cores["A"]]["decay_share"]
    0.5
    """
    if model is not None:
        cored = weights_of(model, sharded=True).cored.values()
        cores = {id(weight.layer.cores[name]) for weight in cored for name in weight.trainable}
        shares = {
            id(weight.layer.cores[name]): share
            for weight in cored
            for name, share in weight.shares.items()
        }
        for group in optimizer.param_groups:
            form = form_of(optimizer, group)
            for place, parameter in enumerate(group["params"]):
                if not parameter.requires_grad:
                    continue
                state = optimizer.state.get(parameter)
                if not state:
                    state = form.initial(parameter, group)
                    if "seed" in state:
                        state["seed"] = int(group.get("seed", 0)) + place
                    state = {
                        slot: laid_out(value, parameter, form) for slot, value in state.items()
                    }
                share = shares.get(id(parameter), 1.0)
                if id(parameter) in cores:
                    state = following.whole(state)
                if share != 1.0 and form.decoupled(group):
                    state[following.SHARE] = share
                if state:
                    optimizer.state[parameter] = state
    return following.follow(optimizer)
