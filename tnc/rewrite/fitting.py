"""Fit the structure of a plan to the weights of a model, in the metric that was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tnc.capture import Measurements
from tnc.decide.site import Site
from tnc.fit import Metric, Moment, fit_structure, reconstruct, relative_error
from tnc.net import Signature, Structure
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


def weight_of(model: nn.Module, sites: Sequence[Site]) -> Tensor:
    """Return the weight of a site as a map, outputs first; several sites stacked by outputs."""
    parts = []
    for site in sites:
        module, attribute = owner_of(model, site.name)
        stored = module._parameters[attribute]
        assert stored is not None
        part = stored.detach()
        parts.append(part.transpose(*site.swapped))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def metric_of(
    model: nn.Module,
    sites: Sequence[Site],
    measurements: Measurements | None,
    kind: str,
) -> Metric:
    """Return the metric of a (stacked) weight: 'none', 'inputs' or 'both'.

    An embedding's rows are weighted by how often they are looked up. Where every site has a bias
    of its own, the inputs are centred: the bias takes up the mean (`b' = b + (W - W') mean`), so
    only the covariance is left to fit. The output weights of stacked sites form a block diagonal.
    """
    if kind == "none" or measurements is None:
        return Metric()
    first = measurements.of(sites[0].name)
    if sites[0].op == "embedding":
        return Metric(first.features if kind == "both" else None, first.frequencies)
    inputs = _inputs(measurements, sites[0].name, _centred(model, sites, measurements))
    outputs = _outputs(measurements, sites) if kind == "both" else None
    if outputs is None:
        return Metric(inputs)
    return Metric(inputs, outputs.damped(DAMPING + shrinkage(len(outputs.given), first.rows)))


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
    sites: Sequence[Site],
    structure: Structure,
    fit: str,
    metric: Metric,
    measurements: Measurements | None,
    seed: int,
    weight: Tensor | None = None,
    sweeps: int = 8,
) -> Fitting:
    """Fit one structure to the (stacked) weight of sites, or to `weight` in its place.

    `sweeps` bounds how long a fit that does not honour the metric by itself is polished in it.
    """
    own = weight_of(model, sites)
    target = own if weight is None else weight
    found = fit_structure(
        target, structure, fit, metric, seed=seed_for(seed, sites[0].name, "fit"), sweeps=sweeps
    )
    dense = reconstruct(structure, found.cores)
    shifts = _shifts(model, sites, target, dense, measurements)
    plain = relative_error(target, dense, structure.signature)
    return Fitting(found.cores, shifts, dense, found.error, plain, found.note)


def seed_for(seed: int, site: str, purpose: str) -> int:
    """Derive a seed for one use from the plan's seed, the site and the purpose."""
    text = f"{seed}/{site}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")


def signature_of(sites: Sequence[Site]) -> Signature:
    """Return the signature of a (stacked) weight."""
    first = sites[0].signature
    return Signature((sum(site.signature.outputs[0] for site in sites),), first.inputs)


def _centred(model: nn.Module, sites: Sequence[Site], measurements: Measurements) -> bool:
    return all(
        bias_of(model, site) is not None
        and len(site.uses) == 1
        and measurements.of(site.name).mean is not None
        for site in sites
    )


def _shifts(
    model: nn.Module,
    sites: Sequence[Site],
    weight: Tensor,
    dense: Tensor,
    measurements: Measurements | None,
) -> tuple[Tensor | None, ...]:
    if measurements is None or not _centred(model, sites, measurements):
        return (None,) * len(sites)
    mean = measurements.of(sites[0].name).mean
    assert mean is not None  # _centred has seen to it
    gap = (weight.double() - dense.double()).flatten(1)
    shift = gap @ mean.double().to(gap.device)
    return tuple(torch.split(shift, [site.signature.outputs[0] for site in sites]))
