"""What is asked for: settings in any of their forms become adapters with rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tnc.adapters.method import Method, methods
from tnc.decide.adapters import DEFAULT, NONE, AdapterRule, AdapterSpec, AdaptersSpec
from tnc.decide.option_text import parse_form
from tnc.decide.options import build
from tnc.decide.spec import Spec
from tnc.decide.spec_problems import SpecProblems, problems_of
from tnc.errors import PlanError

EVERYTHING = "*"

Settings = str | Method | Sequence[Any] | Mapping[str, Any] | Spec | AdapterSpec
"""A method as text or object, rules, adapters as a spec writes them, or a spec that has them."""


@dataclass(frozen=True)
class Rule:
    """Which weights get which method; the first rule that matches one decides; None is none.

    `where` says where the rule was written. With `open` the method's size is left to a budget.
    """

    match: Sequence[str]
    method: Method | None
    op: str | None = None
    min_params: int = 0
    allow_empty: bool = False
    where: str = ""
    open: bool = False


@dataclass(frozen=True)
class Wanted:
    """An adapter that is asked for: see `tnc.decide.adapters.AdapterSpec`."""

    name: str
    rules: tuple[Rule, ...]
    budget: int | float | None = None
    train: tuple[str, ...] = ()
    where: str = "adapters"


def read(
    settings: Settings,
    match: str | Sequence[str] = EVERYTHING,
    name: str = DEFAULT,
    locations: Mapping[str, str] | None = None,
) -> tuple[Wanted, ...]:
    """Return the adapters that settings ask for; `match` and `name` are for a method alone.

    Raises SpecProblems for wrong settings and PlanError for a spec without adapters.
    """
    patterns = (match,) if isinstance(match, str) else tuple(match)
    if isinstance(settings, Method) or _is_method(settings):
        return (Wanted(name, (Rule(patterns, build(methods, settings)),)),)
    if patterns != (EVERYTHING,):
        raise PlanError(
            "`match` is for a method alone: rules have patterns of their own",
            where=f"match={match!r}",
            hint="leave it out",
        )
    if _are_rules(settings):
        assert isinstance(settings, Sequence)
        own: Any = settings
        return (Wanted(name, tuple(own)),)
    places = locations or {}
    found = _adapters(settings)
    alone = len(found) == 1 and "adapters.0" not in places
    prefixes = ["adapters"] if alone else [f"adapters.{k}" for k in range(len(found))]
    return tuple(_wanted(own, prefix, places) for own, prefix in zip(found, prefixes))


def _is_method(settings: Any) -> bool:
    return isinstance(settings, str) or (isinstance(settings, Mapping) and "kind" in settings)


def _are_rules(settings: Any) -> bool:
    listed = isinstance(settings, Sequence) and bool(settings)
    return listed and all(isinstance(rule, Rule) for rule in settings)


def _adapters(settings: Any) -> tuple[AdapterSpec, ...]:
    if isinstance(settings, Spec):
        if settings.adapters is None:
            raise PlanError(
                "the spec asks for no adapters",
                where="adapters",
                hint="add a line such as `adapters: lora{rank=8}`",
            )
        return settings.adapters
    if not isinstance(settings, Mapping | Sequence | AdapterSpec):
        told = settings.__name__ if isinstance(settings, type) else type(settings).__name__
        raise PlanError(
            f"{told} says no adapter",
            where="settings",
            hint="give a method such as 'lora{rank=8}', a mapping with rules, several, or a spec",
        )
    try:
        return TypeAdapter(AdaptersSpec).validate_python(settings)
    except ValidationError as error:
        listed = isinstance(settings, Sequence)
        found = problems_of(error)
        raise SpecProblems(
            replace(each, location=("adapters", *each.location[0 if listed else 1 :]))
            for each in found
        ) from None


def _wanted(adapter: AdapterSpec, prefix: str, places: Mapping[str, str]) -> Wanted:
    where = places.get(prefix, prefix)
    written = [f"{prefix}.rules.{number}" for number in range(len(adapter.rules))]
    rules = [
        _rule(rule, places.get(key, where if places else key), adapter.budget is not None)
        for rule, key in zip(adapter.rules, written)
    ]
    return Wanted(adapter.name, tuple(rules), adapter.budget, adapter.train, where)


def _rule(rule: AdapterRule, where: str, budget: bool) -> Rule:
    method = None if rule.method == NONE else build(methods, rule.method)
    written = parse_form(rule.method)
    return Rule(
        rule.match,
        method,
        rule.op,
        rule.min_params,
        rule.allow_empty,
        where,
        budget and method is not None and method.sized and method.sized_by not in written,
    )
