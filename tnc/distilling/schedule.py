"""How far a run is, and the learning rate that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import cos, pi

from torch import nn

from tnc.decide.spec_parts import Distill
from tnc.distilling.checkpoint import Position
from tnc.errors import PlanError
from tnc.nn import StructuredLayer


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


def parameter_groups(model: nn.Module, settings: Distill) -> list[dict[str, object]]:
    """Return one group a trainable parameter, with its own learning rate.

    With `scaled` a parameter's rate is `rate` times its root mean square (at least 0.01), so that
    one step changes each core by the same share, whatever the gauge of its structure; else `rate`.
    """
    cores = {
        id(p) for m in model.modules() if isinstance(m, StructuredLayer) for p in m.cores.values()
    }
    groups: list[dict[str, object]] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        size = 1.0
        if settings.scaled:
            size = max(0.01, float(parameter.detach().double().square().mean().sqrt()))
        decay = settings.decay if id(parameter) in cores or parameter.dim() > 1 else 0.0
        groups.append({"params": [parameter], "base": settings.rate * size, "weight_decay": decay})
    return groups
