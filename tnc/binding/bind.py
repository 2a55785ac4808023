"""Bind an optimizer that was training a model to what the model became."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tnc.binding.deciding import decide
from tnc.binding.draft import Draft
from tnc.binding.moments import POLICIES, Asked, Policy
from tnc.binding.probing import Probe, squared_gradients
from tnc.binding.reading import Reading
from tnc.binding.report import Report
from tnc.binding.weights import unwrapped, weights_of
from tnc.errors import BindError
from tnc.optim.following import follow
from tnc.optim.rule import Rule
from tnc.rewrite import Compiled

WARMUP = 0
"""Steps over which a core that starts anew under `auto` grows to full steps. None: after a lossy
rewrite 20 of them cost .02 of loss over the first 50 steps (`benchmarks/continuation.py`)."""


@dataclass(frozen=True)
class Bound:
    """The optimizer, which is the one that was given, and what was done to its state."""

    optimizer: torch.optim.Optimizer
    report: Report


def bind(
    model: nn.Module,
    compiled: Compiled | nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    policy: Policy = "auto",
    probe: Probe | None = None,
    warmup: int = WARMUP,
) -> Bound:
    """Let the optimizer of a model train what the model became; return it with a report.

    The same optimizer object goes on, so that schedulers, hooks and gradient scalers stay: its
    groups keep their order and options, and hold the parameters of `compiled` where they held those
    of `model`. A momentum is pulled to the cores exactly; a second moment is pulled and gets its
    scale from `probe`, which yields the losses of a few training batches on the model that it is
    given. Policies: 'auto' moves state where the probe confirms it and else starts anew with
    `warmup` shortened steps; 'reset' starts cores anew; 'pull' moves without a scale; 'probe' takes
    second moments from the probe alone. Weight decay that is decoupled decays the product as it did
    the weight. Works in every direction: dense to cores, cores to other cores, cores to dense. A
    `Compiled` also tells which weights a pass made others of before they became cores (folded batch
    norms, merged layers): their cores start anew.

    Raises BindError, with nothing changed, for state of unknown kind, for parameters that the
    optimizer refuses, and where it holds nothing of the models.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(16, 16))
    >>> adam = torch.optim.AdamW(net.parameters())
    >>> net(torch.ones(2, 16)).sum().backward(); adam.step()
    >>> spec = tnc.Spec(version=1, rules=[{"match": "0", "structure": "low-rank", "keep": 0.5}])
    >>> made = tnc.compile(net, spec, example=torch.ones(2, 16))
    >>> bound = tnc.bind(net, made, adam, policy="pull")
    >>> [(line.parameter, line.deed) for line in bound.report.lines]
    [('0.bias', 'carried'), ('0.cores.A', 'moved'), ('0.cores.B', 'moved')]
    """
    if policy not in POLICIES:
        raise BindError(f"policy is {policy!r}", hint=f"policies are {', '.join(POLICIES)}")
    if policy == "probe" and probe is None:
        raise BindError("policy 'probe' needs a probe", hint="probe(model) yields training losses")
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise BindError(f"warmup is {warmup!r}", hint="give a number of steps, 0 for none")
    new = compiled.model if isinstance(compiled, Compiled) else compiled
    if unwrapped(new) is unwrapped(model):
        raise BindError(
            "the model before and after are the same object",
            hint="give the model that the optimizer was training, and the compiled one",
        )
    learners = [p for p in getattr(optimizer, "parts", (optimizer,)) if isinstance(p, Rule)]
    for rule in learners:
        rule.adopt(new)  # whether it takes the new parameters depends on their model
    try:
        draft = Draft(optimizer, weights_of(model), weights_of(new))
        reading = Reading(draft, _changed(compiled))
        reading.read()
        cores, squares = reading.cores, None
        if probe is not None and policy in ("auto", "probe") and cores:
            squares = squared_gradients(new, probe, cores)
        with torch.no_grad():
            decide(draft, reading.into, cores, Asked(policy, squares, warmup))
            draft.finish()
    except BaseException:
        for rule in learners:
            rule.adopt(model)
        raise
    draft.commit()
    for rule in learners:
        rule.adopt(new)  # anew: without what it saw of the probe
    follow(optimizer)
    name = type(optimizer).__name__
    return Bound(optimizer, Report(name, policy, draft.lines, tuple(draft.notes)))


def _changed(compiled: Compiled | nn.Module) -> dict[str, str]:
    """Say, by the name of a weight, what made another weight of it."""
    if not isinstance(compiled, Compiled):
        return {}
    found = {
        name: f"{record.name} made another weight of it"
        for record in compiled.records
        for name in record.changed
    }
    merged = [reparam for reparam in compiled.reparams if reparam.merged]
    return found | {name: f"it is now {each.note}" for each in merged for name in each.old}
