"""How far a run is, and the learning rate that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import cos, pi

from torch import nn

from tnc.decide.optimizers import OptimizerSpec, class_of
from tnc.decide.spec_parts import Distill
from tnc.distilling.checkpoint import Position
from tnc.errors import PlanError
from tnc.nn import StructuredLayer
from tnc.optim.building import Chosen, choose


def progress(settings: Distill, position: Position) -> float:
    """Return the share of the run that is done, by steps or by minutes, whichever is further."""
    shares = [0.0]
    if settings.steps is not None:
        shares.append(position.step / settings.steps)
    if settings.minutes is not None:
        shares.append(position.seconds / (60 * settings.minutes))
    return min(1.0, max(shares))


def rate_factor(settings: Distill, done: float) -> float:
    """Return the factor of the learning rate: a linear warmup, then half a cosine to zero.

    >>> made = Distill(steps=100, warmup=0.1)
    >>> [round(rate_factor(made, done), 3) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.02, 0.5, 1.0, 0.5, 0.0]
    """
    if done < settings.warmup:
        return max(0.02, done / settings.warmup)
    return 0.5 * (1 + cos(pi * (done - settings.warmup) / (1 - settings.warmup)))


def freeze_(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters that match stay as they are. Raises PlanError where none matches."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise PlanError(
                f"{pattern!r} matches no parameter",
                where="distill.freeze",
                hint="patterns are of parameter names: `embeddings.*`",
            )
        for name in found:
            names[name].requires_grad_(False)


OWN: Mapping[str, Mapping[str, object]] = {
    "adamw": {"betas": (0.9, 0.99)},
    "sgd": {"momentum": 0.9, "nesterov": True},
}
"""Options that rules have here where none are given."""


def parameter_groups(model: nn.Module, settings: Distill) -> tuple[Chosen, ...]:
    """Return the groups of the trainable parameters; `base` of a group is its full learning rate.

    A group whose rule has an `lr` keeps it, and so with `weight_decay`. Else every parameter is a
    group with a rate of its own: with `scaled` it is `rate` times the root mean square (at least
    0.01), so that one step changes each core by the same share, whatever the gauge of its
    structure. A rule whose updates depend on the other parameters of a group has `rate` for all.
    """
    spec = settings.optimizer or OptimizerSpec(default="adamw")
    cores = {
        id(p) for m in model.modules() if isinstance(m, StructuredLayer) for p in m.cores.values()
    }
    found: list[Chosen] = []
    for chosen in choose(model, spec):
        options = {**OWN.get(chosen.rule, {}), **chosen.options}
        whole = getattr(class_of(chosen.rule), "surveys", False)
        if "lr" in options or whole:
            base = options.get("lr", settings.rate)
            options = {"weight_decay": settings.decay, **options, "lr": 0.0, "base": base}
            found.append(replace(chosen, options=options))
            continue
        for name, parameter in chosen.parameters:
            size = 1.0
            if settings.scaled:
                size = max(0.01, float(parameter.detach().double().square().mean().sqrt()))
            decays = id(parameter) in cores or parameter.dim() > 1
            own = {
                "weight_decay": settings.decay if decays else 0.0,
                **options,
                "lr": 0.0,
                "base": settings.rate * size,
            }
            found.append(replace(chosen, options=own, parameters=((name, parameter),)))
    return tuple(found)
