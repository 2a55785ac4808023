"""Build the optimizer that a spec asks for, of one class or of several, and count what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.decide.grouping import GroupCount, Trained, assign
from tnc.decide.optimizers import OptimizerSpec, class_of, needed, options_of
from tnc.decide.spec import Spec
from tnc.decide.spec_problems import SpecProblems, problems_of
from tnc.errors import BindError, PlanError
from tnc.net import Structure
from tnc.optim.forms import form_of, part_of
from tnc.optim.rule import Rule
from tnc.optim.together import Together

Settings = OptimizerSpec | Spec | str | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Parameters by name that one rule trains with the same options; `match` is what took them."""

    match: str
    rule: str
    options: Mapping[str, Any]
    parameters: tuple[tuple[str, nn.Parameter], ...]


def build(
    model: nn.Module, settings: Settings, *, locations: Mapping[str, str] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters that settings ask for.

    `settings` are those under `optimizer` in a spec, or a spec that has them: a rule for all
    (`"adamw{lr=0.001}"`), or `{"groups": [{"match": ..., "rule": ...}], "default": ...}`. Groups
    are asked in order, the first that matches takes a parameter. Rules of one name are one
    optimizer of that class; several are a `Together`. Groups know the names of their parameters.

    Raises SpecProblems for wrong settings, PlanError for a pattern that matches nothing and for a
    parameter that no group takes, BindError for one that its rule cannot train.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    >>> groups = [{"match": "matrices", "rule": "muon{lr=0.02}"}]
    >>> made = build(net, {"groups": groups, "default": "adamw{lr=0.001}"})
    >>> [(group["part"], group["lr"], group["param_names"]) for group in made.param_groups]
    [('muon', 0.02, ['0.weight']), ('adamw', 0.001, ['0.bias', '1.weight', '1.bias'])]
    """
    return assemble(model, choose(model, read_settings(settings), locations))


def read_settings(settings: Settings) -> OptimizerSpec:
    """Return settings as a spec holds them. Raises SpecProblems, and PlanError without any."""
    from pydantic import ValidationError

    if isinstance(settings, Spec):
        if settings.optimizer is None:
            raise PlanError(
                "the spec does not say which optimizer trains the model",
                where="optimizer",
                hint="add a line such as `optimizer: adamw{lr=0.001}`",
            )
        return settings.optimizer
    if isinstance(settings, OptimizerSpec):
        return settings
    try:
        return OptimizerSpec.model_validate(settings)
    except ValidationError as error:
        raise SpecProblems(problems_of(error)) from None


def choose(
    model: nn.Module, spec: OptimizerSpec, locations: Mapping[str, str] | None = None
) -> tuple[Chosen, ...]:
    """Return the groups of a model's trainable parameters, those without any left out."""
    held = parameters_of(model)
    places = assign([trained for _, trained in held], spec, locations)
    texts = [(", ".join(group.match), group.rule) for group in spec.groups]
    if spec.default is not None:
        texts.append(("the rest" if spec.groups else "all", spec.default))
    found = []
    for number, (match, text) in enumerate(texts):
        rule, options = options_of(text)
        own = tuple(
            (trained.names[0], parameter)
            for (parameter, trained), place in zip(held, places)
            if place == number
        )
        if own:
            found.append(Chosen(match, rule, options, own))
    if not found:
        raise PlanError("every parameter of the model is frozen: there is nothing to train")
    return tuple(found)


def assemble(model: nn.Module, chosen: Iterable[Chosen]) -> torch.optim.Optimizer:
    """Return one optimizer of groups: of their class where it is one, else a `Together`."""
    parts: dict[str, torch.optim.Optimizer] = {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in chosen:
        group = {**each.options, "params": list(each.parameters)}
        groups.setdefault(each.rule, []).append(group)
    for rule, own in groups.items():
        kind = class_of(rule)
        parts[rule] = kind(own, **needed(kind, model))
        _check_refusals(parts[rule])
    return next(iter(parts.values())) if len(parts) == 1 else Together(parts)


def count(model: nn.Module, chosen: Sequence[Chosen]) -> tuple[GroupCount, ...]:
    """Return what every group holds and keeps; the model may be without values."""
    optimizer = assemble(model, chosen)
    bytes_of = {
        id(parameter): state_bytes(optimizer, group, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return tuple(
        GroupCount(
            each.match,
            each.rule,
            len(each.parameters),
            sum(p.numel() for _, p in each.parameters),
            sum(bytes_of[id(p)] for _, p in each.parameters),
        )
        for each in chosen
    )


def state_bytes(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: nn.Parameter
) -> int:
    """Return the bytes of the state that an optimizer keeps of a parameter, by formula.

    A rule of `tnc.optim` says it itself; of a class of `torch.optim` it is what the slots of its
    form hold before the first step. Numbers are left out.
    """
    part = part_of(optimizer, group)
    if isinstance(part, Rule):
        return part.bytes_of(parameter, group)
    slots = form_of(part).initial(parameter.detach().to("meta"), group).values()
    return sum(v.numel() * v.element_size() for v in slots if isinstance(v, Tensor) and v.dim())


def parameters_of(model: nn.Module) -> list[tuple[nn.Parameter, Trained]]:
    """Return every parameter of a model once, with what patterns ask of it."""
    names: dict[int, list[str]] = {}
    held: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        held[id(parameter)] = parameter
    cores, tables = set[int](), set[int]()
    for module in model.modules():
        inner = module._modules.get("cores")
        if isinstance(inner, nn.ParameterDict) and isinstance(
            getattr(module, "structure", None), Structure
        ):
            cores |= {id(core) for core in inner.values()}
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            tables.add(id(module.weight))
    return [
        (
            held[key],
            Trained(
                tuple(own),
                tuple(held[key].shape),
                key in cores,
                key in tables,
                held[key].requires_grad,
            ),
        )
        for key, own in names.items()
    ]


def _check_refusals(optimizer: torch.optim.Optimizer) -> None:
    """Raise BindError for a parameter that its rule cannot train; rules of ours did already."""
    if isinstance(optimizer, Rule):
        return
    form = form_of(optimizer)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"]):
            reason = form.refuses(parameter, group)
            if reason:
                raise BindError(reason, where=name, hint="give it to another group")
