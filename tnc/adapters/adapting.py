"""Adapt a model: choose weights and sizes, compute first values, attach; or say what that does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tnc.adapters.adapters import Adapters
from tnc.adapters.attach import Pool, attach_, check_free, shared_copy, train_also_
from tnc.adapters.bank import check_name
from tnc.adapters.calibration import LIMIT, Loss, output_loss
from tnc.adapters.choosing import Choice, Chosen, choose
from tnc.adapters.given import Given, collected
from tnc.adapters.method import Method, methods
from tnc.adapters.rules import EVERYTHING, Settings, Wanted, read
from tnc.adapters.sizing import sized
from tnc.adapters.starting import Report, started
from tnc.capture import Trace, capture
from tnc.capture.model import Holder, model_of
from tnc.decide.adapter_plan import AdapterEntry, AdapterPlan
from tnc.decide.adapters import DEFAULT
from tnc.decide.option_text import print_form
from tnc.decide.options import as_mapping
from tnc.decide.plan import Skip
from tnc.decide.spec import Spec
from tnc.planner.preparing import Example, example_of


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked for: adapters, and what they are computed from; see `adapt`."""

    wanted: tuple[Wanted, ...]
    given: Given
    example: Example | Tensor | None
    train: str | Sequence[str]
    seed: int


def adapt(
    model: nn.Module | Holder,
    settings: Settings,
    *,
    match: str | Sequence[str] = EVERYTHING,
    name: str = DEFAULT,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Loss = output_loss,
    original: nn.Module | Holder | None = None,
    train: str | Sequence[str] = (),
    seed: int | None = None,
    limit: int = LIMIT,
    locations: Mapping[str, str] | None = None,
    progress: Report | None = None,
) -> Adapters:
    """Return a copy of a model with adapters; its weights are shared with the model, and frozen.

    `model` is a module, or what `tnc.compile` returned: its model then.
    `settings` are an adaptation method as text (`lora{rank=8}`) or as an object, for the weights
    whose paths `match`; or rules, a budget and several adapters, as a spec writes them under
    `adapters`; or a spec. `example` is one input, the first batch of `calibration` serves where it
    is not given. Methods that start from gradients, and budgets, run `loss(output, batch)` over
    `calibration`. `original` is the model that a compressed one was made of. `train` are patterns
    of parameters that are trained beside the adapters (a new head): they get memory of their own.
    At most `limit` bytes of gradients live at once: the batches are run again for every part.
    The spec's `seed` serves where none is given, else 0. Raises PlanError for a rule that matches
    nothing and where no weight can be adapted, InfeasibleBudget, SpecProblems.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> tuned = tnc.adapt(net, "lora{rank=2}", match="0", example=torch.ones(1, 8))
    >>> [name for name, _ in tuned.named_parameters()]
    ['0.adapters_.default.weight.layer.cores.A', '0.adapters_.default.weight.layer.cores.B']
    >>> tuned.reasons
    (('2.weight', 'no rule matches it'),)
    """
    model = model_of(model)
    wanted = read(settings, match, name, locations)
    given = collected(calibration, loss, original, limit)
    asked = _Asked(wanted, given, example, train, _seed(settings, seed))
    return _adapted_(shared_copy(model), asked, progress)


def adapt_(
    model: nn.Module | Holder,
    settings: Settings,
    *,
    match: str | Sequence[str] = EVERYTHING,
    name: str = DEFAULT,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Loss = output_loss,
    original: nn.Module | Holder | None = None,
    seed: int | None = None,
    limit: int = LIMIT,
    locations: Mapping[str, str] | None = None,
    progress: Report | None = None,
) -> Adapters:
    """Add adapters to a model itself, beside any that it has; what it trained before stays so.

    Raises PlanError as `adapt`, and where adapters that are there are merged; the model is then as
    it was.
    """
    model = model_of(model)
    Adapters(model).check_unmerged()
    wanted = read(settings, match, name, locations)
    given = collected(calibration, loss, original, limit)
    return _adapted_(model, _Asked(wanted, given, example, (), _seed(settings, seed)), progress)


def plan(
    model: nn.Module | Holder,
    settings: Settings,
    *,
    match: str | Sequence[str] = EVERYTHING,
    name: str = DEFAULT,
    example: Example | Tensor | None = None,
    calibration: Iterable[Any] | None = None,
    loss: Loss = output_loss,
    original: nn.Module | Holder | None = None,
    train: str | Sequence[str] = (),
    seed: int | None = None,
    limit: int = LIMIT,
    locations: Mapping[str, str] | None = None,
) -> AdapterPlan:
    """Say what `adapt` would do with these arguments: every weight, its delta or its reason.

    >>> import torch, tnc
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> made = tnc.adapters.plan(net, "lora{rank=4}", example=torch.ones(1, 8))
    >>> [(entry.weight, entry.trained) for entry in made.entries], made.skips[0][1].reason
    ([('0.weight', 64)], 'rank 4 is above 2, the most that 2 <- 8 has')
    """
    model = model_of(model)
    wanted = read(settings, match, name, locations)
    given = collected(calibration, loss, original, limit)
    asked = _Asked(wanted, given, example, train, _seed(settings, seed))
    copied = shared_copy(model)
    whole = sum(parameter.numel() for parameter in model.parameters())
    choices, trace, beside = _chosen(copied, asked)
    held = dict(copied.named_parameters())
    return AdapterPlan(
        fingerprint=trace.fingerprint,
        seed=asked.seed,
        entries=tuple(_entry(copied, choice, each) for choice in choices for each in choice.chosen),
        skips=tuple((c.wanted.name, Skip(*pair)) for c in choices for pair in c.reasons),
        model_params=whole,
        beside=tuple((name, held[name].numel()) for name in beside),
    )


def _adapted_(model: nn.Module, asked: _Asked, report: Report | None) -> Adapters:
    """Decide about every adapter and compute all first values, then attach: none sees another."""
    choices, _, _ = _chosen(model, asked)
    made = [(choice, started(model, choice, asked.given, asked.seed, report)) for choice in choices]
    for choice, parts in made:
        for each in parts:
            check_free(model, each.chosen.place, choice.wanted.name)
    pool = Pool()
    for choice, parts in made:
        for each in parts:
            place, method = each.chosen.place, each.chosen.method
            attach_(model, place, choice.wanted.name, method, each.structure, each.parts, pool=pool)
    return Adapters(model, tuple(dict.fromkeys(pair for c in choices for pair in c.reasons)))


def _chosen(model: nn.Module, asked: _Asked) -> tuple[tuple[Choice, ...], Trace, tuple[str, ...]]:
    """Return the weights of each adapter with sizes, the trace, and what is trained beside them."""
    probe = example_of(asked.example, tuple(asked.given.batches))
    patterns = [asked.train] if isinstance(asked.train, str) else list(asked.train)
    for wanted in asked.wanted:
        patterns += [pattern for pattern in wanted.train if pattern not in patterns]
    for wanted in asked.wanted:
        check_name(wanted.name, "adapters")
    beside = train_also_(model, patterns)
    with Adapters(model).disabled():  # what adapters compute beside a weight is no other use of it
        trace = capture(model, *probe, graph=False)
    choices = [choose(model, trace, wanted, beside) for wanted in asked.wanted]
    return tuple(sized(model, choice, asked.given) for choice in choices), trace, beside


def _entry(model: nn.Module, choice: Choice, each: Chosen) -> AdapterEntry:
    site = each.place.site
    return AdapterEntry(
        adapter=choice.wanted.name,
        weight=site.name,
        method=_told(each.method),
        structure=str(each.method.structure(site)),
        trained=each.method.trained(site, partial(each.place.mapped, model)),
        weight_params=site.signature.parameters,
        reason=each.reason or "its rule",
        rule=each.rule.where,
    )


def _told(method: Method) -> str:
    """Write a method with its size, also where that is the default."""
    plain = as_mapping(methods, method)
    if method.sized:
        plain = {"kind": plain["kind"], method.sized_by: getattr(method, method.sized_by), **plain}
    return print_form(plain)


def _seed(settings: Settings, seed: int | None) -> int:
    if seed is not None:
        return seed
    return settings.seed if isinstance(settings, Spec) else 0
