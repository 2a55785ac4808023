"""Match the rules of a spec with the sites of a model: first match wins, nothing is silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

from tnc.decide.group import Group
from tnc.decide.plan import Skip
from tnc.decide.site import Site
from tnc.decide.spec import Spec
from tnc.decide.stacking import stacked
from tnc.decide.target import Target
from tnc.errors import PlanError


class Patterned(Protocol):
    """A rule: patterns of paths, the operation that it is for, whether it may match nothing."""

    @property
    def match(self) -> Sequence[str]: ...

    @property
    def op(self) -> str | None: ...

    @property
    def allow_empty(self) -> bool: ...


def match_rules(
    sites: Sequence[Site],
    spec: Spec,
    locations: Mapping[str, str],
    shared: Sequence[Sequence[str]] = (),
    untraced: Sequence[tuple[str, str]] = (),
) -> tuple[tuple[Target, ...], tuple[Skip, ...]]:
    """Return the targets, and a skip with its reason for every other site.

    `shared` are groups of site names that read one tensor; they become one target where the spec
    says `shares: true` and one rule matches them all. `untraced` are other parameters with the
    reason why they are no site, told where there is no site at all. Rules with `joint` stack
    layers. Raises PlanError for a rule without a match, and for a spec without rules.
    """
    if not spec.rules:
        raise PlanError(
            "the spec has no rules: there is nothing to compile",
            where="rules",
            hint="add rules; what it asks of adapters is done by `tnc adapt`, or tnc.adapt",
        )
    counts = [0] * len(spec.rules)
    chosen: dict[str, Target] = {}
    skips = []
    for site in sites:
        number = next((n for n, rule in enumerate(spec.rules) if matches(rule, site)), None)
        if number is None:
            skips.append(Skip(site.name, "no rule matches it"))
            continue
        counts[number] += 1
        rule, where = spec.rules[number], locations.get(f"rules.{number}", f"rules[{number}]")
        if not rule.structure:
            skips.append(Skip(site.name, f"dense by {where}"))
        elif site.signature.parameters < rule.min_params:
            skips.append(
                Skip(
                    site.name,
                    f"{site.signature.parameters:,} parameters are fewer than min_params "
                    f"{rule.min_params:,} of {where}",
                )
            )
        else:
            chosen[site.name] = Target(Group((site,)), rule, where)
    places = [locations.get(f"rules.{n}", f"rules[{n}]") for n in range(len(spec.rules))]
    check_counts(spec.rules, counts, sites, places, untraced)
    targets, alone = stacked(tuple(chosen.values()))
    if spec.shares:
        targets = _grouped({target.name: target for target in targets}, shared)
    return targets, (*skips, *alone)


def matches(rule: Patterned, site: Site) -> bool:
    """Say whether a rule takes a site, by the patterns of any of its names and by its operation."""
    return any(_takes(pattern, rule, site) for pattern in rule.match)


def _takes(pattern: str, rule: Patterned, site: Site) -> bool:
    named = any(fnmatchcase(name, pattern) for name in (site.path, *site.aliases))
    return named and (rule.op is None or rule.op == site.op)


def check_counts(
    rules: Sequence[Patterned],
    counts: Sequence[int],
    sites: Sequence[Site],
    places: Sequence[str],
    untraced: Sequence[tuple[str, str]] = (),
) -> None:
    """Raise PlanError for a rule that took no site; `places` say where each rule was written."""
    for rule, count, where in zip(rules, counts, places):
        if rule.allow_empty:
            continue
        if count:
            _check_patterns(rule, sites, where)
            continue
        earlier = [site for site in sites if matches(rule, site)]
        if earlier:
            raise PlanError(
                f"rule {', '.join(map(repr, rule.match))} matches {_counted(earlier)}, all "
                "taken by earlier rules",
                where=where,
                hint="the first matching rule wins: move this rule up, or set allow_empty: true",
            )
        if not sites:
            raise PlanError(
                "the model has no weight that could be rewritten", where=where, hint=_left(untraced)
            )
        only = f" with op {rule.op}" if rule.op else ""
        raise PlanError(
            f"rule {', '.join(map(repr, rule.match))}{only} matches no site",
            where=where,
            hint=f"{_near(rule.match[0], sites)}; or set allow_empty: true",
        )


def _check_patterns(rule: Patterned, sites: Sequence[Site], where: str) -> None:
    """Raise PlanError for one of several patterns of a rule that matches nothing."""
    for pattern in rule.match:
        if not any(_takes(pattern, rule, site) for site in sites):
            raise PlanError(
                f"{pattern!r}, one of the patterns of a rule, matches no site",
                where=where,
                hint=f"{_near(pattern, sites)}; leave it out, or set allow_empty: true",
            )


def _near(pattern: str, sites: Sequence[Site]) -> str:
    """Name the sites that a pattern may have meant."""
    paths = [site.path for site in sites]
    near = get_close_matches(pattern.replace("*", ""), paths, n=3, cutoff=0.3)
    return f"sites are {', '.join(near or paths[:3])}{', ...' if paths[3:] else ''}"


def _counted(sites: Sequence[Site]) -> str:
    return "1 site" if len(sites) == 1 else f"{len(sites)} sites"


def _left(untraced: Sequence[tuple[str, str]]) -> str:
    if not untraced:
        return "weights are parameters of two or more dimensions that the example input reaches"
    told = "; ".join(f"{name}: {reason}" for name, reason in untraced[:3])
    return told + (f"; and {len(untraced) - 3} more" if untraced[3:] else "")


def _grouped(chosen: dict[str, Target], shared: Sequence[Sequence[str]]) -> tuple[Target, ...]:
    left = dict(chosen)
    joined = []
    for group in shared:
        members = [left[name] for name in group if name in left]
        sites = [target.sites[0] for target in members]
        same = len({(t.where, t.signature.inputs) for t in members}) == 1
        plain = all(
            not s.rebuilt and s.groups == 1 and not s.transposed and len(s.aliases) == 1
            for s in sites
        )
        if len(members) > 1 and same and plain:
            for site in sites:
                del left[site.name]
            joined.append(Target(Group(tuple(sites)), members[0].rule, members[0].where))
    return tuple(sorted((*left.values(), *joined), key=lambda target: target.name))
