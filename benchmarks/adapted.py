"""Adaptation methods at equal numbers of trained parameters, and how benchmarks train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tnc.adapters import Adapters
from tnc.adapters.following import follow
from tnc.adapters.method import Method, methods
from tnc.adapters.place import Place, places
from tnc.capture import capture
from tnc.errors import TncError
from tnc.planner.preparing import Example, example_of

RANK = 4
"""The rank of LoRA, whose trained parameters all others are given."""

LARGEST = 384
MOST = 1.5
"""Methods that cannot train fewer parameters than so many times LoRA's are left out."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "fedsvd": {"every": 20},
    "lora-pro": {"adam": True},
    "sara": {"nuclear": 0.0},
}
"""What short runs need beside the defaults: events within them, Adam for all, no decomposition."""


VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "eora toward the output": ("eora", {"toward": "output"}),
    "lora-sb, step = rate": ("lora-sb", {}),
}
"""Methods that are measured with other options too, under a name of their own."""

RATED: Mapping[str, str] = {"lora-sb, step = rate": "step"}
"""Options that are the rate of a first step, where they are what training takes."""


@dataclass(frozen=True)
class Sized:
    """A method of the size at which it trains the wanted number of parameters, or why it is out."""

    method: Method | None
    trained: int = 0
    reason: str = ""


def sized(
    model: nn.Module, example: Example, match: str, without: Sequence[str] = ()
) -> dict[str, Sized]:
    """Return every registered method at the size nearest to LoRA's count; see `RANK`.

    `without` names what a start may not be computed from: `original`, `gradient`, `moment`.
    """
    trace = capture(model, *example_of(example, ()), graph=False)
    chosen = [p for p in places(model, trace.sites) if fnmatchcase(p.site.path, match)]
    target = _count(methods.get("lora")(rank=RANK), model, chosen)  # type: ignore[call-arg]
    found: dict[str, Sized] = {}
    for name in sorted((*methods.all(), *VARIANTS)):
        missing = [need for need in _kind(name).needs if need in without]
        if missing:
            found[name] = Sized(None, 0, f"starts from the {missing[0]}, which is not there")
            continue
        try:
            found[name] = _nearest(name, model, chosen, target)
        except TncError as error:
            found[name] = Sized(None, 0, error.message)
    return found


def _kind(name: str) -> type[Method]:
    return methods.get(VARIANTS[name][0] if name in VARIANTS else name)


def _nearest(name: str, model: nn.Module, chosen: Sequence[Place], target: int) -> Sized:
    """Return a method at the size that trains nearest to `target` parameters."""
    _, options = VARIANTS.get(name, (name, OPTIONS.get(name, {})))
    method = _kind(name)(**options)
    if method.compressed and any(place.structured for place in chosen):
        return Sized(None, 0, method.compressed)
    refused = next((r for place in chosen if (r := method.refuses(place.site))), "")
    if not method.sized and refused:
        return Sized(None, 0, refused)
    weights = sum(place.site.signature.parameters for place in chosen)
    if hasattr(method, "share"):
        candidates = [replace(method, share=target / weights)]
    elif method.sized:
        candidates = [replace(method, **{method.sized_by: size}) for size in range(1, LARGEST + 1)]
    else:
        candidates = [method]
    best: tuple[float, Sized] | None = None
    for candidate in candidates:
        if any(candidate.refuses(place.site) for place in chosen):
            continue
        count = _count(candidate, model, chosen)
        distance = abs(count - target)
        if best is None or distance < best[0]:
            best = (distance, Sized(candidate, count))
        if count > 2 * target:
            break
    if best is None:
        return Sized(None, 0, refused or "no size fits")
    if best[1].trained > MOST * target:
        return Sized(None, 0, f"trains {best[1].trained:,} parameters, LoRA {target:,}")
    return best[1]


def _count(method: Any, model: nn.Module, chosen: Sequence[Place]) -> int:
    return sum(method.trained(place.site, partial(place.mapped, model)) for place in chosen)


def at_rate(name: str, method: Method, rate: float) -> Method:
    """Return a method for training at a rate."""
    return replace(method, **{RATED[name]: rate}) if name in RATED else method  # type: ignore[type-var]


def optimizer_for(method: Method, adapters: Adapters, rate: float) -> torch.optim.Optimizer:
    """Return AdamW without decay, or SGD where the method normalises gradients itself."""
    parameters = list(adapters.parameters())
    found: torch.optim.Optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.0)
    if method.unfit(found):
        found = torch.optim.SGD(parameters, rate)
    return found


def train(
    adapters: Adapters,
    method: Method,
    rate: float,
    steps: int,
    loss: Callable[[int], Tensor],
    seen: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Take steps with all hooks of the method; `seen(step)` is called before each and at the end.

    Deltas are in training mode for the loss alone; the model is in the mode that it has. Returns
    the losses; training ends where one is not finite.
    """
    optimizer = optimizer_for(method, adapters, rate)
    followed = follow(adapters, optimizer)
    losses = []
    try:
        for step in range(steps):
            seen(step)
            optimizer.zero_grad()
            _switch(adapters, training=True)
            value = loss(step)
            _switch(adapters, training=False)
            if not bool(value.isfinite()):
                return [*losses, float("nan")]
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(value.detach()))
        seen(steps)
    finally:
        followed.close()
    return losses


def _switch(adapters: Adapters, training: bool) -> None:
    for delta in adapters.deltas().values():
        delta.train(training)
