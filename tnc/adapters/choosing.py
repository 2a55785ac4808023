"""Which weights of a model get which method: rules are matched, nothing is silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tnc.adapters.attach import refusal
from tnc.adapters.method import Method
from tnc.adapters.place import Place, places
from tnc.adapters.rules import Rule, Wanted
from tnc.capture import Trace
from tnc.decide.matching import check_counts, matches
from tnc.errors import PlanError


@dataclass(frozen=True)
class Chosen:
    """A weight with the method that it gets, the rule that said so, and what chose the size."""

    place: Place
    method: Method
    rule: Rule
    reason: str = ""

    @property
    def name(self) -> str:
        """The name of the weight."""
        return self.place.site.name


@dataclass(frozen=True)
class Choice:
    """The weights of one adapter, and for every other weight why it has none."""

    wanted: Wanted
    chosen: tuple[Chosen, ...]
    reasons: tuple[tuple[str, str], ...]


def choose(model: nn.Module, trace: Trace, wanted: Wanted, beside: Sequence[str] = ()) -> Choice:
    """Match the rules of an adapter with the weights of a traced model.

    `beside` are names of parameters that are trained as they are: they get no adapter. Raises
    PlanError for a rule that matches no weight, or only what rules before it took, and where no
    weight is left to adapt.
    """
    known = places(model, trace.sites)
    sites = [place.site for place in known]
    chosen: list[Chosen] = []
    reasons = [pair for pair in trace.untraced if "core of a structured" not in pair[1]]
    counts = [0] * len(wanted.rules)
    for place in known:
        number = next((n for n, rule in enumerate(wanted.rules) if matches(rule, place.site)), None)
        if number is None:
            reasons.append((place.site.name, "no rule matches it"))
            continue
        counts[number] += 1
        rule = wanted.rules[number]
        reason = _refusal(rule, place)
        if set(beside) & set(place.site.aliases):
            reason = "it is trained as it is, beside the adapter"
        if reason or rule.method is None:
            reasons.append((place.site.name, reason))
        else:
            chosen.append(Chosen(place, rule.method, rule))
    found = [rule.where or wanted.where for rule in wanted.rules]
    check_counts(wanted.rules, counts, sites, found, trace.untraced)
    if not chosen:
        raise PlanError(f"no weight can be adapted: {told(reasons)}", where=wanted.where)
    return Choice(wanted, tuple(chosen), tuple(sorted(reasons)))


def told(reasons: Sequence[tuple[str, str]], most: int = 4) -> str:
    """Write reasons in one line, the first few of them."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(f"{name}: {reason}" for name, reason in reasons[:most]) + more


def _refusal(rule: Rule, place: Place) -> str:
    """Say why a weight gets no delta though a rule matches it; empty where it gets one."""
    method, site = rule.method, place.site
    by = f" by {rule.where}" if rule.where else ""
    if method is None:
        return f"left alone{by or ' by its rule'}"
    if site.signature.parameters < rule.min_params:
        return (
            f"{site.signature.parameters:,} parameters are fewer than min_params "
            f"{rule.min_params:,}{by}"
        )
    if not rule.open:
        return refusal(place, method)
    if method.sizes(site) and not (place.structured and method.compressed):
        return ""
    return refusal(place, method) or "the method has no size for it"
