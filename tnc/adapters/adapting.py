"""Adapt a model: choose weights, compute first values, attach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.attach import (
    attach_,
    generator_for,
    refusal,
    shared_copy,
    started,
    train_also_,
)
from tnc.adapters.calibration import LIMIT, Loss, gradients, output_loss
from tnc.adapters.method import Method, methods
from tnc.adapters.place import Place, places
from tnc.capture import capture, measure
from tnc.decide.options import build
from tnc.errors import PlanError
from tnc.planner.preparing import Example, example_of

Chosen = tuple[Place, Method]


@dataclass(frozen=True)
class Rule:
    """Which weights get which adapter; the first rule that matches one decides; None is none."""

    match: Sequence[str]
    method: Method | None
    op: str | None = None


def adapt(
    model: nn.Module,
    method: str | Method | Sequence[Rule] | Mapping[str, Any],
    *,
    match: str | Sequence[str] = "*",
    name: str = "default",
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Loss = output_loss,
    original: nn.Module | None = None,
    train: str | Sequence[str] = (),
    seed: int = 0,
    limit: int = LIMIT,
) -> Adapters:
    """Return a copy of a model with adapters; its weights are shared with the model, and frozen.

    `method` is an adaptation method as text (`lora{rank=8}`), as an object, or rules for patterns.
    `match` are patterns of module paths. `example` is one input, the first batch of `calibration`
    serves where it is not given. Methods that start from gradients run `loss(output, batch)` over
    `calibration`. `original` is the model that a compressed one was made of. `train` are patterns
    of parameters that are trained beside the adapters (a new head): they get memory of their own.
    Raises PlanError for a pattern that matches nothing and a weight that a method refuses.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> tuned = tnc.adapt(net, "lora{rank=2}", match="0", example=torch.ones(1, 8))
    >>> [name for name, _ in tuned.named_parameters()]
    ['0.adapters_.default.weight.layer.cores.B', '0.adapters_.default.weight.layer.cores.A']
    """
    copied = shared_copy(model)
    train_also_(copied, [train] if isinstance(train, str) else train)
    return adapt_(
        copied,
        method,
        match=match,
        name=name,
        example=example,
        calibration=calibration,
        loss=loss,
        original=original,
        seed=seed,
        limit=limit,
    )


def adapt_(
    model: nn.Module,
    method: str | Method | Sequence[Rule] | Mapping[str, Any],
    *,
    match: str | Sequence[str] = "*",
    name: str = "default",
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Loss = output_loss,
    original: nn.Module | None = None,
    seed: int = 0,
    limit: int = LIMIT,
) -> Adapters:
    """Add adapters to a model itself, beside any that it has; what it trained before stays so."""
    batches = tuple(calibration or ())
    rules = _rules(method, (match,) if isinstance(match, str) else match)
    chosen, reasons = choose(model, rules, example_of(example, batches))
    found = _measured(model, chosen, batches, loss, original, limit)
    for place, how in chosen:
        generator = generator_for(seed, name, place.site.name)
        structure, parts = started(model, place, how, generator, **found.get(place.site.name, {}))
        attach_(model, place, name, how, structure, parts)
    return Adapters(model, reasons)


def choose(
    model: nn.Module, rules: Sequence[Rule], probe: Example
) -> tuple[list[Chosen], tuple[tuple[str, str], ...]]:
    """Return the weights that rules choose with their methods, and why others got none."""
    trace = capture(model, *probe, graph=False)
    known = places(model, trace.sites)
    chosen: list[Chosen] = []
    reasons = [pair for pair in trace.untraced if "core of a structured" not in pair[1]]
    counts = [0] * len(rules)
    for place in known:
        number = next((n for n, rule in enumerate(rules) if _matches(rule, place)), None)
        if number is None:
            reasons.append((place.site.name, "no rule matches it"))
            continue
        counts[number] += 1
        method = rules[number].method
        reason = "left alone by its rule" if method is None else refusal(place, method)
        if method is not None and not reason:
            chosen.append((place, method))
        else:
            reasons.append((place.site.name, reason))
    for rule, count in zip(rules, counts):
        if not count:
            raise PlanError(
                f"rule {', '.join(map(repr, rule.match))} matches no weight",
                where="adapters",
                hint="weights are " + ", ".join(place.site.path for place in known[:4]) + ", ...",
            )
    if not chosen:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons[:4])
        raise PlanError(f"no weight can be adapted: {told}", where="adapters")
    return chosen, tuple(sorted(reasons))


def _rules(method: Any, match: Sequence[str]) -> tuple[Rule, ...]:
    if isinstance(method, Sequence) and not isinstance(method, str):
        return tuple(method)
    return (Rule(tuple(match), build(methods, method)),)


def _matches(rule: Rule, place: Place) -> bool:
    site = place.site
    named = any(fnmatchcase(n, p) for p in rule.match for n in (site.path, *site.aliases))
    return named and (rule.op is None or rule.op == site.op)


def _measured(
    model: nn.Module,
    chosen: Sequence[Chosen],
    batches: Sequence[Any],
    loss: Loss,
    original: nn.Module | None,
    limit: int,
) -> dict[str, dict[str, Tensor]]:
    """Return by weight what its method needs."""
    found: dict[str, dict[str, Tensor]] = {place.site.name: {} for place, _ in chosen}
    wanted = {
        need: [p for p, how in chosen if need in how.needs]
        for need in ("gradient", "moment", "original")
    }
    if wanted["gradient"] and batches:
        for place, gradient in gradients(model, wanted["gradient"], batches, loss, limit):
            found[place.site.name]["gradient"] = gradient
    if wanted["moment"] and batches:
        sites = [place.site for place in wanted["moment"]]
        measured = measure(model, sites, batches)
        for site in sites:
            moment = measured.of(site.name).moment
            if moment is not None:
                found[site.name]["moment"] = moment
    if wanted["original"] and original is not None:
        own = dict(original.named_parameters())
        for place in wanted["original"]:
            was = next((own[n] for n in place.site.aliases if n in own), None)
            if was is not None:
                found[place.site.name]["original"] = was.detach().permute(place.site.order)
    return found
