"""Sequential refit: later layers are fitted to the inputs that compressed earlier ones produce."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.undisturbed import evaluating
from tnc.decide.group import Group
from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.fit import Metric
from tnc.rewrite.drift import Moments, moments_at, stages
from tnc.rewrite.edit import bias_of
from tnc.rewrite.factorizing import factorize_entry, sites_of
from tnc.rewrite.fitting import metric_of, shrinkage, weight_of
from tnc.rewrite.reading import Originals
from tnc.rewrite.subject import Subject


def refitted_weights(
    subject: Subject, entries: Sequence[Entry], strength: float, batches: Sequence[Any]
) -> Subject:
    """Fit and install entries in the order of execution, each by `refit_target`.

    Layers that are no plain linear or convolution module with one use are fitted as planned, and
    say so.
    """
    original = subject.original
    if original is None:
        original = copy.deepcopy(subject.model)
    with evaluating(original):
        return _refitted(subject, original, entries, strength, batches)


def _refitted(
    subject: Subject,
    original: nn.Module,
    entries: Sequence[Entry],
    strength: float,
    batches: Sequence[Any],
) -> Subject:
    sites = {entry.site: sites_of(subject, entry)[0] for entry in entries}
    by_name = {sites[entry.site].name: entry for entry in entries}
    found = stages(original, [sites[entry.site] for entry in entries], batches[0])
    later = {by_name[site.name].site for stage in found for site in stage}
    for entry in entries:
        if entry.site not in later:
            subject = factorize_entry(subject, entry)
            subject = subject.edited(
                f"{entry.site}: no sequential refit, it is not one plain layer"
            )
    known = Originals(original, [stage[0].path for stage in found], batches, subject.room)
    for stage in found:
        moments = moments_at(known, subject.model, stage[0], batches)
        for site in stage:
            subject = _refit(subject, by_name[site.name], site, moments, strength)
    return subject


def refit_target(
    weight: Tensor, moments: Moments, strength: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return `W*` (o, n) for a weight (o, n), and the moment of the inputs to fit it in.

    `W* = argmin E |W x - W* x'|^2 + strength * E |(W - W*) x|^2`, both over centred inputs where
    the layer has a bias: `W* = W (E[x x'^T] + strength C) (E[x' x'^T] + strength C)^-1`. A ridge on
    both sides draws W* to W where there are few rows.
    """
    was, cross, now = moments.was, moments.cross, moments.now
    if centred:
        was = was - torch.outer(moments.mean_was, moments.mean_was)
        cross = cross - torch.outer(moments.mean_was, moments.mean_now)
        now = now - torch.outer(moments.mean_now, moments.mean_now)
    inputs = now + strength * was
    level = inputs.diagonal().mean()
    share = 1e-8 + shrinkage(len(inputs), moments.rows)
    ridge = share * level * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    right = weight.double() @ (cross + strength * was + ridge)
    return torch.linalg.solve(inputs + ridge, right.T).T, (inputs + ridge) / (1 + strength)


def _refit(
    subject: Subject,
    entry: Entry,
    site: Site,
    moments: tuple[Moments, Moments, Moments],
    strength: float,
) -> Subject:
    """Refit one layer, or fit it as it was where the refit does worse on rows held back."""
    every, held, rest = moments
    centred = bias_of(subject.model, site) is not None
    stored = weight_of(subject.model, Group((site,)))
    weight = stored.flatten(1)
    trial, _ = refit_target(weight, rest, strength, centred)
    if output_error(weight, trial, held, centred) >= output_error(weight, weight, held, centred):
        subject = subject.edited(f"{site.name}: no refit, it did worse on rows held back")
        return factorize_entry(subject, entry)
    target, inputs = refit_target(weight, every, strength, centred)
    measured = metric_of(subject.model, Group((site,)), subject.measurements, entry.metric)

    def shift(dense: Tensor) -> Tensor:
        return weight.double() @ every.mean_was - dense.double().flatten(1) @ every.mean_now

    return factorize_entry(
        subject,
        entry,
        weight=target.to(weight.dtype).view_as(stored),
        metric=Metric(inputs, measured.outputs),
        shift=shift if centred else None,
    )


def output_error(weight: Tensor, target: Tensor, moments: Moments, centred: bool) -> float:
    """Return `E |W x - T x'|^2`, over centred rows where a bias takes up the mean."""
    was, cross, now = moments.was, moments.cross, moments.now
    if centred:
        was = was - torch.outer(moments.mean_was, moments.mean_was)
        cross = cross - torch.outer(moments.mean_was, moments.mean_now)
        now = now - torch.outer(moments.mean_now, moments.mean_now)
    w, t = weight.double(), target.double()
    total = ((w @ was) * w).sum() - 2 * ((w @ cross) * t).sum() + ((t @ now) * t).sum()
    return float(total)
