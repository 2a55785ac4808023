"""Fit one entry of a plan and put it into the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.errors import PassError, PlanError
from tnc.fit import Metric
from tnc.net import Network, Signature, Structure
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
    sites = sites_of(subject, entry)
    measured = subject.measurements
    norm = metric or metric_of(subject.model, sites, measured, entry.metric)
    fitting = fit_sites(
        subject.model, sites, entry.structure, entry.fit, norm, measured, subject.plan.seed, weight
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
    sites = sites_of(subject, entry)
    reparams: list[tuple[Reparam, StructuredLayer]] = []
    lines = []
    for number, (site, structure, cores) in enumerate(
        members_of(sites, entry.structure, fitting.cores)
    ):
        own_shift = shift(fitting.dense) if shift is not None else fitting.shifts[number]
        bias = _moved(subject.model, site, own_shift)
        shared: Mapping[str, Tensor] = dict(reparams[0][1].cores.items()) if reparams else {}
        cores = {
            name: shared[name] if _is_shared(name, structure, entry, shared) else value
            for name, value in cores.items()
        }
        layer, path = install_(subject.model, site, structure, cores, bias)
        reparams.append((_reparam(site, structure, path, entry, fitting, refitted), layer))
        lines.append(f"{site.name} -> {structure}")
    return subject.edited(
        *lines, reparams=subject.reparams + tuple(reparam for reparam, _ in reparams)
    )


def members_of(
    sites: Sequence[Site], structure: Structure, cores: Mapping[str, Tensor]
) -> list[tuple[Site, Structure, dict[str, Tensor]]]:
    """Cut a fit of stacked weights into one structure and its cores for each site."""
    if len(sites) == 1:
        return [(sites[0], structure, dict(cores))]
    name = stacked_core(structure)
    place = structure.terms[0].equation.core(name).indices.index(_output_leg(structure))
    rows = [site.signature.outputs[0] for site in sites]
    parts = torch.split(cores[name], rows, dim=place)
    found = []
    for site, part in zip(sites, parts):
        own = _with_rows(structure, site.signature.outputs[0])
        found.append((site, own, {**cores, name: part.contiguous()}))
    return found


def stacked_core(structure: Structure) -> str:
    """Return the core that alone carries the output. Raises PassError where it cannot be cut."""
    equation = structure.terms[0].equation
    leg = _output_leg(structure)
    holders = [core.name for core in equation.cores if leg in core.indices]
    if len(structure.terms) != 1 or len(equation.outputs[0]) != 1 or len(holders) != 1:
        raise PassError(
            f"{structure} cannot be shared: no single core carries the whole output",
            hint="share input factors with low-rank, or set shares: false",
        )
    return holders[0]


def _output_leg(structure: Structure) -> str:
    return structure.terms[0].equation.outputs[0][0]


def _with_rows(structure: Structure, rows: int) -> Structure:
    (term,) = structure.terms
    sizes = {**term.size, _output_leg(structure): rows}
    signature = Signature((rows,), structure.signature.inputs)
    return Structure(signature, (Network.of(term.equation, sizes),))


def _is_shared(name: str, structure: Structure, entry: Entry, shared: object) -> bool:
    return bool(shared) and len(entry.members) > 1 and name != stacked_core(structure)


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
        promised=entry.relative,
        plain=fitting.plain,
        fit=entry.fit,
        note=fitting.note,
        refitted=refitted,
    )
