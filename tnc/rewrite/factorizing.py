"""Fit one entry of a plan and put it into the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from torch import Tensor, nn

from tnc.decide.group import Group, output_core
from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.errors import PassError, PlanError
from tnc.fit import Metric
from tnc.net import Structure
from tnc.nn import StructuredLayer
from tnc.rewrite.edit import bias_of, install_
from tnc.rewrite.fitting import Fitting, fit_sites, metric_of
from tnc.rewrite.reparam import Reparam
from tnc.rewrite.subject import Subject


def sites_of(subject: Subject, entry: Entry) -> tuple[Site, ...]:
    """Return the sites of an entry. Raises PlanError where the model has them no longer."""
    known = {site.name: site for site in subject.trace.sites}
    missing = [name for name in entry.members if name not in known]
    if missing:
        raise PlanError(
            f"the model has no site {missing[0]!r}, which the plan names",
            where=f"entry {entry.site}",
            hint="plans replay on models with the same fingerprint: make a new plan",
        )
    return tuple(known[name] for name in entry.members)


def factorize_entry(
    subject: Subject,
    entry: Entry,
    *,
    weight: Tensor | None = None,
    metric: Metric | None = None,
    shift: Callable[[Tensor], Tensor] | None = None,
) -> Subject:
    """Fit an entry's structure, install it, and record what was done.

    `weight` and `metric` replace the model's own weight and the measured metric (a sequential
    refit); `shift` returns the shift of the bias for the dense weight that was fitted.
    """
    assert entry.structure is not None and subject.plan is not None
    group = Group.of(sites_of(subject, entry), entry.structure)
    measured = subject.measurements
    norm = metric or metric_of(subject.model, group, measured, entry.metric)
    fitting = fit_sites(
        subject.model, group, entry.structure, entry.fit, norm, measured, subject.plan.seed, weight
    )
    return install_fitting(subject, entry, fitting, shift, weight is not None)


def install_fitting(
    subject: Subject,
    entry: Entry,
    fitting: Fitting,
    shift: Callable[[Tensor], Tensor] | None = None,
    refitted: bool = False,
) -> Subject:
    """Put the cores of an entry's fit into the model, one layer for each of its sites."""
    assert entry.structure is not None
    group = Group.of(sites_of(subject, entry), entry.structure)
    reparams: list[tuple[Reparam, StructuredLayer]] = []
    lines = []
    members = members_of(group, entry.structure, fitting.cores)
    for number, (site, structure, cores, own) in enumerate(members):
        own_shift = shift(fitting.dense) if shift is not None else fitting.shifts[number]
        bias = _moved(subject.model, site, own_shift)
        shared: Mapping[str, Tensor] = dict(reparams[0][1].cores.items()) if reparams else {}
        cores = {
            name: shared[name] if name in shared and name not in own else value
            for name, value in cores.items()
        }
        layer, path = install_(subject.model, site, structure, cores, bias)
        reparams.append((_reparam(site, structure, path, entry, fitting, refitted), layer))
        lines.append(f"{site.name} -> {structure}")
    return subject.edited(
        *lines, reparams=subject.reparams + tuple(reparam for reparam, _ in reparams)
    )


def members_of(
    group: Group, structure: Structure, fitted: Mapping[str, Tensor]
) -> list[tuple[Site, Structure, dict[str, Tensor], set[str]]]:
    """Return for each site its structure, its cores, and which of them are its own."""
    if len(group.sites) > 1 and not group.stacked and not output_core(structure)[0]:
        raise PassError(
            f"{structure} cannot be shared: no single core carries the whole output",
            hint="share input factors with low-rank, or set shares: false",
        )
    held = {core.name: core for term in structure.terms for core in term.equation.cores}
    found = []
    for site, own, parts in group.members(structure):
        cores = dict(fitted)
        for name, part in parts.items():
            index = dict(part)
            places = tuple(index.get(leg, slice(None)) for leg in held[name].indices)
            cores[name] = fitted[name][places].contiguous()
        found.append((site, own, cores, set(parts)))
    return found


def _moved(model: nn.Module, site: Site, shift: Tensor | None) -> Tensor | None:
    bias = bias_of(model, site)
    if bias is None or shift is None:
        return None
    return bias.detach() + shift.to(bias.dtype)


def _reparam(
    site: Site, structure: Structure, path: str, entry: Entry, fitting: Fitting, refitted: bool
) -> Reparam:
    return Reparam(
        old=site.aliases,
        structure=structure,
        new=tuple((name, f"{path}.cores.{name}") for name in structure.shapes),
        transposed=site.transposed,
        residual=fitting.relative,
        promised=inf if entry.relative is None else entry.relative,
        plain=fitting.plain,
        fit=entry.fit,
        note=fitting.note,
        refitted=refitted,
    )
