"""Fit the structure of a plan to the weights of a model, in the metric that was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.capture import Measurements
from tnc.decide.group import Group
from tnc.decide.site import Site
from tnc.fit import Metric, Moment, fit_structure, fits, reconstruct, relative_error, widest
from tnc.net import Structure
from tnc.rewrite.edit import bias_of, owner_of

DAMPING = 0.1
"""Share of the mean output weight that every output direction gets: they are estimates."""

SHRINKAGE = 0.1
"""Share of the mean moment that is added for each dimension over rows: fewer rows, less trust."""


def shrinkage(size: int, rows: int) -> float:
    """Return how far a moment of `size` dimensions from `rows` is drawn to the identity.

    >>> round(shrinkage(384, 18_000), 4), round(shrinkage(1536, 1_300), 4)
    (0.0021, 0.1182)
    """
    return SHRINKAGE * size / max(1, rows)


@dataclass(frozen=True, eq=False)
class Fitting:
    """Cores for a (stacked) weight and the shift that its mean output asks of each bias.

    `relative` is the error in the metric of the fit over the weight's norm there; `plain` the same
    in the Frobenius norm. `shifts` holds one vector a site, None where there is no bias.
    """

    cores: dict[str, Tensor]
    shifts: tuple[Tensor | None, ...]
    dense: Tensor
    relative: float
    plain: float
    note: str


def weight_of(model: nn.Module, group: Group) -> Tensor:
    """Return the weight of a group as a map, outputs first, of the group's signature."""
    parts = []
    for site in group.sites:
        module, attribute = owner_of(model, site.name)
        stored = module._parameters[attribute]
        assert stored is not None
        part = stored.detach()
        parts.append(part.permute(site.order))
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts) if group.stacked else torch.cat(parts)


def parts_of(dense: Tensor, group: Group) -> list[Tensor]:
    """Cut what belongs to a group's weight, or to its outputs, into one part for each site."""
    if len(group.sites) == 1:
        return [dense]
    return list(dense if group.stacked else torch.split(dense, group.rows))


def metric_of(
    model: nn.Module,
    group: Group,
    measurements: Measurements | None,
    kind: str,
) -> Metric:
    """Return the metric of a group's weight: 'none', 'inputs' or 'both'.

    An embedding's rows are weighted by how often they are looked up. Where every site has a bias
    of its own, the inputs are centred: the bias takes up the mean (`b' = b + (W - W') mean`), so
    only the covariance is left to fit. The output weights of joined sites form a block diagonal.
    Stacked sites read different tensors: the moment is their mean, the output weights a diagonal.
    """
    if kind == "none" or measurements is None:
        return Metric()
    sites = group.sites
    if group.stacked:
        return _stacked_metric(model, sites, measurements, kind)
    first = measurements.of(sites[0].name)
    if sites[0].op == "embedding":
        return Metric(first.features if kind == "both" else None, first.frequencies)
    inputs = _inputs(measurements, sites[0].name, _centred(model, sites, measurements))
    outputs = _outputs(measurements, sites) if kind == "both" else None
    if outputs is None:
        return Metric(inputs)
    return Metric(inputs, outputs.damped(DAMPING + shrinkage(len(outputs.given), first.rows)))


def _stacked_metric(
    model: nn.Module, sites: Sequence[Site], measurements: Measurements, kind: str
) -> Metric:
    centred = _centred(model, sites, measurements)
    moments = [_inputs(measurements, site.name, centred) for site in sites]
    known = [moment.given for moment in moments if moment is not None]
    same = len(known) == len(sites) and len({moment.dim() for moment in known}) == 1
    inputs = Moment(torch.stack(known).mean(0)) if same else None
    weights = []
    for site in sites:
        gram = measurements.of(site.name).outputs
        if kind == "both" and gram is not None:
            weights.append(gram if gram.dim() == 1 else gram.diagonal())
    if len(weights) < len(sites):
        return Metric(inputs)
    return Metric(inputs, Moment(torch.cat(weights)).damped(DAMPING))


def _inputs(measurements: Measurements, site: str, centred: bool) -> Moment | None:
    """Return the moment of a site's inputs, centred or not; made once for all that read them."""
    first = measurements.of(site)
    if first.moment is None:
        return None
    key = ("inputs", id(first.moment), centred)
    if key not in measurements.derived:
        moment = first.moment
        if centred and moment.dim() == 2 and first.mean is not None:
            moment = moment - torch.outer(first.mean, first.mean)
        share = shrinkage(len(moment), first.rows)
        measurements.derived[key] = Moment(moment).damped(share)
    found: Moment = measurements.derived[key]
    return found


def _outputs(measurements: Measurements, sites: Sequence[Site]) -> Moment | None:
    """Return the output weights of (stacked) sites, block by block."""
    names = tuple(site.name for site in sites)
    key = ("outputs", names)
    if key not in measurements.derived:
        grams = [measurements.of(name).outputs for name in names]
        known = [gram for gram in grams if gram is not None]
        whole = None
        if len(known) == len(grams) and any(gram.dim() == 1 for gram in known):
            whole = torch.cat([g if g.dim() == 1 else g.diagonal() for g in known])
        elif len(known) == len(grams):
            whole = known[0]
            if len(known) > 1:
                whole = torch.block_diag(*known)  # type: ignore[no-untyped-call]
        measurements.derived[key] = None if whole is None else Moment(whole)
    found: Moment | None = measurements.derived[key]
    return found


def fit_sites(
    model: nn.Module,
    group: Group,
    structure: Structure,
    fit: str,
    metric: Metric,
    measurements: Measurements | None,
    seed: int,
    weight: Tensor | None = None,
    sweeps: int = 8,
) -> Fitting:
    """Fit one structure to the weight of a group, or to `weight` in its place.

    `sweeps` bounds how long a fit that does not honour the metric by itself is polished in it.
    """
    own = weight_of(model, group)
    target = own if weight is None else weight
    if target.is_complex() and fit != "auto" and not fits.get(fit).takes_complex:
        fit = "auto"  # the family's own fit is for real weights
    found = fit_structure(
        target,
        structure,
        fit,
        metric,
        seed=seed_for(seed, group.sites[0].name, "fit"),
        sweeps=sweeps,
    )
    dense = reconstruct(structure, found.cores)
    shifts = _shifts(model, group, target, dense, measurements)
    plain = relative_error(target, dense, structure.signature)
    return Fitting(found.cores, shifts, dense, found.error, plain, found.note)


def seed_for(seed: int, site: str, purpose: str) -> int:
    """Derive a seed for one use from the plan's seed, the site and the purpose."""
    text = f"{seed}/{site}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def _centred(model: nn.Module, sites: Sequence[Site], measurements: Measurements) -> bool:
    return all(
        bias_of(model, site) is not None
        and len(site.uses) == 1
        and measurements.of(site.name).mean is not None
        for site in sites
    )


def _shifts(
    model: nn.Module,
    group: Group,
    weight: Tensor,
    dense: Tensor,
    measurements: Measurements | None,
) -> tuple[Tensor | None, ...]:
    if measurements is None or not _centred(model, group.sites, measurements):
        return (None,) * len(group.sites)
    found = []
    for site, gap in zip(group.sites, parts_of(widest(weight) - widest(dense), group)):
        mean = measurements.of(site.name).mean
        assert mean is not None  # _centred has seen to it
        found.append(gap.flatten(1) @ mean.to(gap))
    return tuple(found)
