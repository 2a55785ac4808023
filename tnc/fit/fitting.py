"""Fit a weight into a structure: checks, choice of the fit, polishing in the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tnc.errors import FitError
from tnc.fit.als import descend, polish, special_fit, start
from tnc.fit.complex_least_squares import fit_complex
from tnc.fit.descent import Settings
from tnc.fit.folding import reconstruct
from tnc.fit.method import DirectFit, Fit, Fitted, Outcome, fits
from tnc.fit.metric import Metric, relative_error, widest
from tnc.net import Structure

SWEEPS = 8


def fit_structure(
    weight: Tensor,
    structure: Structure,
    fit: str = "auto",
    metric: Metric | None = None,
    seed: int = 0,
    given: Mapping[str, Tensor] | None = None,
    sweeps: int = SWEEPS,
) -> Fitted:
    """Return the cores of `structure` that come closest to `weight` in `metric`.

    `weight` has shape `structure.signature.shape`; work is in float64, or complex128; cores come in
    its dtype.
    `fit` is a registered name or 'auto': the first that accepts, special ones before 'als'. Where
    the fit does not honour the metric, `sweeps` of alternating least squares follow, and the note
    says so. `given` cores are held if they are frozen or constant, else they are a warm start of
    'als'. Raises FitError for weights or metrics that do not fit or are not finite, for a fit that
    does not accept, and for constant cores that are not given.
    """
    metric = metric or Metric()
    _check(weight, structure, metric, given or {})
    if weight.is_complex():
        return _complex(weight.detach(), structure, metric, seed, fit, bool(given), sweeps)
    target = weight.detach().double()
    if given:
        found = _from_given(target, structure, fit, metric, seed, given)
    else:
        found = fitted(target, structure, choose(structure, fit), metric, seed, sweeps)
    cores = {name: found.cores[name].to(weight.dtype).contiguous() for name in structure.shapes}
    rebuilt = reconstruct(structure, {name: core.double() for name, core in cores.items()})
    error = relative_error(target, rebuilt, structure.signature, metric)
    return Fitted(cores, error, found.iterations, found.converged, found.note)


def _complex(
    weight: Tensor,
    structure: Structure,
    metric: Metric,
    seed: int,
    fit: str,
    given: bool,
    sweeps: int,
) -> Fitted:
    """Fit a complex weight from nothing: by the fit that takes it, then in the metric."""
    named = None if fit == "auto" else choose(structure, fit)
    if given or (named is not None and not named.takes_complex):
        able = sorted(name for name, one in fits.all().items() if one.takes_complex)
        raise FitError(
            "complex weights cannot be fitted from given cores"
            if given
            else f"fit {fit!r} takes real weights only",
            where=f"structure {structure}",
            hint=f"use fit 'auto' and no given cores; for complex weights: {', '.join(able)}",
        )
    target = widest(weight)
    special = named if isinstance(named, DirectFit) else None
    special = special or (special_fit(structure, True) if named is None else None)
    if special is None:
        found = fit_complex(target, structure, metric, seed)
    else:
        found = special.outcome(target, structure, metric, seed)
        if not special.honours(structure, metric) and sweeps:
            found = fit_complex(target, structure, metric, seed, found, sweeps)
    cores = {name: core.to(weight.dtype).contiguous() for name, core in found.cores.items()}
    rebuilt = reconstruct(structure, {n: widest(c) for n, c in cores.items()})
    error = relative_error(target, rebuilt, structure.signature, metric)
    return Fitted(cores, error, found.iterations, found.converged, found.note)


def choose(structure: Structure, name: str = "auto") -> Fit:
    """Return the fit called `name`, or the first that accepts. Raises FitError, UnknownName."""
    if name != "auto":
        fit = fits.get(name)
        reason = fit.accepts(structure)
        if reason:
            raise FitError(
                f"fit {fit.name!r} does not take this structure: {reason}",
                where=f"structure {structure}",
                hint="use fit 'auto', or 'als', which takes every equation",
            )
        return fit
    reasons = []
    for fit in sorted(fits.all().values(), key=lambda fit: (fit.order, fit.name)):
        reason = fit.accepts(structure)
        if not reason:
            return fit
        reasons.append(f"{fit.name}: {reason}")
    raise FitError(
        f"no fit takes this structure: {reasons[-1]}",
        where=f"structure {structure}",
        hint="give the values of constant cores in `given`",
    )


def fitted(
    target: Tensor, structure: Structure, fit: Fit, metric: Metric, seed: int, sweeps: int
) -> Outcome:
    """Run a fit on a float64 weight, then polish where it does not honour the metric."""
    found = fit.outcome(target, structure, metric, seed)
    if fit.honours(structure, metric) or sweeps < 1:
        note = [] if fit.honours(structure, metric) else ["the metric is honoured in part"]
        return replace(found, note="; ".join(filter(None, [found.note, *note])))
    better = polish(target, structure, found.cores, metric, sweeps)
    told = f"{fit.name}, then {better.iterations} sweeps of als in the metric"
    return replace(
        better,
        iterations=found.iterations + better.iterations,
        note="; ".join(filter(None, [found.note, told])),
    )


def _from_given(
    target: Tensor,
    structure: Structure,
    fit: str,
    metric: Metric,
    seed: int,
    given: Mapping[str, Tensor],
) -> Outcome:
    if fit not in ("auto", "als"):
        raise FitError(
            f"fit {fit!r} starts from nothing, but cores were given: {', '.join(sorted(given))}",
            hint="use fit 'als' with given cores",
        )
    values = {name: core.detach().double() for name, core in given.items()}
    held = frozenset(name for name in values if structure.kinds[name] != "trainable")
    begun = start(target, structure, metric, seed, values)
    found = descend(target, structure, begun, metric, Settings(), held)
    told = f"als with {len(held)} cores held and {len(values) - len(held)} started as given"
    return replace(found, note=told)


def _check(
    weight: Tensor, structure: Structure, metric: Metric, given: Mapping[str, Tensor]
) -> None:
    if tuple(weight.shape) != structure.signature.shape:
        raise FitError(
            f"the weight has shape {tuple(weight.shape)}, "
            f"the structure is {structure.signature.shape}",
            where=f"structure {structure}",
            hint="weights are outputs first: transpose a weight that is stored inputs first",
        )
    if not bool(torch.isfinite(weight).all()):
        raise FitError(
            "the weight has entries that are not finite",
            where=f"structure {structure}",
            hint="look for inf or nan in the checkpoint",
        )
    metric.check(structure.signature)
    for name, core in given.items():
        wanted = structure.shapes.get(name)
        if wanted is None or tuple(core.shape) != wanted:
            raise FitError(
                f"given core {name} has shape {tuple(core.shape)}, "
                + (f"the structure has {wanted}" if wanted else "the structure has no such core"),
                where=f"structure {structure}",
            )
    missing = [n for n, k in structure.kinds.items() if k == "constant" and n not in given]
    if missing:
        raise FitError(
            f"core {missing[0]} is constant and its value is not given",
            where=f"structure {structure}",
            hint="pass its tensor in `given`",
        )
