"""Give back what another compression lost: a low-rank branch beside each changed weight.

For a weight W that pruning or rounding turned into W', the best branch of rank r minimises
`E |(W - W' - B A) x|^2` over the inputs that the compressed model sees: the truncated projection of
the residual in the metric of the inputs. EoRA (Liu et al., 2024) does the same by eigenvectors of
`E[x x^T]`; here nothing is inverted, so inputs that never vary cost nothing and break nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture import Measurements, Trace, capture, measure
from tnc.capture.undisturbed import copied
from tnc.decide.group import Group
from tnc.decide.plan import Entry, Plan, Skip, Total
from tnc.decide.site import Site
from tnc.derive.cost import cost
from tnc.errors import PlanError
from tnc.fit import Metric, Moment
from tnc.fit.projection import project
from tnc.net import Structure, parse_network
from tnc.rewrite.compiled import Compiled
from tnc.rewrite.edit import install_
from tnc.rewrite.fitting import weight_of
from tnc.rewrite.manager import count_parameters
from tnc.rewrite.reparam import Reparam

Probe = tuple[tuple[Any, ...], dict[str, Any]]


def compensate(
    model: nn.Module,
    original: nn.Module,
    batches: Sequence[Any],
    probe: Probe,
    rank: int = 16,
    match: Sequence[str] = ("*",),
    classes: Mapping[str, str] | None = None,
) -> Compiled:
    """Return a copy of `model` in which changed linear weights get a low-rank branch.

    `original` has the same modules with the weights that were lost. Every matched linear weight
    that differs becomes `W'! + B A`: W' stays, frozen, B (o, rank) and A (rank, i) are trainable.
    The plan says what each weight lost and keeps losing, relative to the layer's output, and why a
    weight is left alone; `classes` are those of the model by path. Raises PlanError where nothing
    matches or the models differ in shape.
    """
    made = copied(model)
    trace = capture(made, *probe, graph=False)
    known = {site.name: site for site in capture(original, *probe, graph=False).sites}
    sites, skips = _changed(trace, known, model, original, match)
    found = measure(made, sites, batches)
    entries, reparams = [], []
    for site in sites:
        entry, reparam = _branch(made, original, site, found, min(rank, _full(site)))
        entries.append(entry)
        reparams.append(reparam)
    plan = Plan(
        fingerprint=trace.fingerprint,
        seed=0,
        entries=tuple(entries),
        skips=tuple(sorted((*skips, *(Skip(*left) for left in trace.untraced)), key=_order)),
        passes=(),
        budgets=(),
        objective="sum",
        total=_total(model, made, entries),
        scope=_total(model, made, entries),
        notes=(f"low-rank branches of rank {rank} beside weights that were changed",),
    )
    return Compiled(made, plan, trace, (), tuple(reparams), probe, classes or {}, found)


def residual_branch(residual: Tensor, inputs: Moment | None, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (o, rank) and A (rank, i) that minimise `E |(residual - B A) x|^2`.

    `inputs` is the second moment of x, (i, i) or its diagonal; None for the plain norm.
    """
    left, right, _ = project(residual.double(), Metric(inputs))
    return left[:, :rank], right[:rank]


def _changed(
    trace: Trace,
    known: dict[str, Site],
    model: nn.Module,
    original: nn.Module,
    match: Sequence[str],
) -> tuple[list[Site], list[Skip]]:
    sites, skips = [], []
    for site in trace.sites:
        if not any(fnmatchcase(site.path, pattern) for pattern in match):
            skips.append(Skip(site.name, "no pattern matches it"))
        elif site.op != "linear" or len(site.signature.outputs) > 1:
            skips.append(Skip(site.name, f"a branch is for linear weights, this is {site.op}"))
        elif weight_of(model, Group((site,))).is_complex():
            skips.append(Skip(site.name, "a branch is for real weights, this one is complex"))
        elif site.name not in known:
            raise PlanError(
                f"the original has no weight {site.name!r}",
                hint="give the model that was compressed, with its own modules and names",
            )
        elif known[site.name].signature != site.signature:
            raise PlanError(
                f"{site.name} is {site.signature}, in the original {known[site.name].signature}",
                hint="only values may differ: structures of tnc are planned as `X + low-rank`",
            )
        elif torch.equal(weight_of(model, Group((site,))), weight_of(original, Group((site,)))):
            skips.append(Skip(site.name, "it is as in the original"))
        else:
            sites.append(site)
    if not sites:
        told = ", ".join(sorted({skip.reason for skip in skips})) or "the model has no weight"
        raise PlanError(f"no weight needs compensation: {told}", where=f"match {list(match)}")
    return sites, skips


def _branch(
    model: nn.Module, original: nn.Module, site: Site, found: Measurements, rank: int
) -> tuple[Entry, Reparam]:
    (o,), (i,) = site.signature.outputs, site.signature.inputs
    group = Group((site,))
    now = weight_of(model, group).clone()
    was = weight_of(original, group).to(now.device)
    moment = found.of(site.name).moment
    metric = Metric(Moment(moment)) if moment is not None else Metric()
    lost = was.double() - now.double()
    left, right = residual_branch(lost, metric.moment("inputs"), rank)
    structure = Structure.of(
        parse_network(f"W[o i]! : i -> o | o={o} i={i}"),
        parse_network(f"B[o r] A[r i] : i -> o | o={o} i={i} r={rank}"),
    )
    norm = metric.norm(was.double(), site.signature) or 1.0
    before = metric.norm(lost, site.signature) / norm
    after = metric.norm(lost - left @ right, site.signature) / norm
    cores = {"W": now, "B": left, "A": right}
    cores = {name: core.to(now.dtype).contiguous() for name, core in cores.items()}
    _, path = install_(model, site, structure, cores)
    dense, spent = site.cost, cost(structure, site.work, site.itemsize)
    entry = Entry(
        site=site.name,
        members=(site.name,),
        structure=structure,
        fit="compensation",
        family="dense + low-rank",
        metric="inputs" if moment is not None else "none",
        error=after**2,
        relative=after,
        params=spent.params,
        dense_params=dense.params,
        flops=spent.flops,
        dense_flops=dense.flops,
        reason=f"its output was off by {before:.3g}, with the branch by {after:.3g}",
        rule="compensate",
    )
    reparam = Reparam(
        old=site.aliases,
        structure=structure,
        new=tuple((name, f"{path}.cores.{name}") for name in structure.shapes),
        transposed=site.transposed,
        residual=after,
        promised=after,
        plain=float((lost - left @ right).norm() / (was.double().norm() or 1.0)),
        fit="compensation",
    )
    return entry, reparam


def _full(site: Site) -> int:
    return min(site.signature.outputs[0], site.signature.inputs[0])


def _order(skip: Skip) -> tuple[str, str]:
    return skip.site, skip.reason


def _total(model: nn.Module, made: nn.Module, entries: Sequence[Entry]) -> Total:
    flops = sum(entry.flops for entry in entries)
    dense = sum(entry.dense_flops for entry in entries)
    return Total(count_parameters(made), count_parameters(model), flops, dense)
