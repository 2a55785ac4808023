"""Sequential refit: later layers are fitted to the inputs that compressed earlier ones produce."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import call
from tnc.capture.undisturbed import evaluating
from tnc.decide.group import Group
from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.fit import Metric
from tnc.rewrite.edit import bias_of
from tnc.rewrite.factorizing import factorize_entry, sites_of
from tnc.rewrite.fitting import metric_of, shrinkage, weight_of
from tnc.rewrite.reading import Originals, input_at, rows_of, watched
from tnc.rewrite.subject import Subject


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of what a layer read in the original (x) and reads now (x'), with means.

    `cross` is E[x x'^T], `now` is E[x' x'^T], `was` is E[x x^T]; all (n, n), float64.
    """

    was: Tensor
    cross: Tensor
    now: Tensor
    mean_was: Tensor
    mean_now: Tensor
    rows: int


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
    stages = _stages(original, list(entries), sites, batches[0])
    later = {entry.site for stage in stages for entry in stage}
    for entry in entries:
        if entry.site not in later:
            subject = factorize_entry(subject, entry)
            subject = subject.edited(
                f"{entry.site}: no sequential refit, it is not one plain layer"
            )
    paths = [sites[stage[0].site].path for stage in stages]
    known = Originals(original, paths, batches, subject.room)
    for stage in stages:
        moments = _moments(known, subject.model, sites[stage[0].site], batches)
        for entry in stage:
            subject = _refit(subject, entry, sites[entry.site], moments, strength)
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


def _stages(
    model: nn.Module, entries: list[Entry], sites: Mapping[str, Site], batch: Any
) -> list[list[Entry]]:
    """Group entries by the tensor that they read, in the order of execution."""
    plain = {
        sites[entry.site].path: entry for entry in entries if _is_plain(model, sites[entry.site])
    }
    seen: list[tuple[Tensor, list[Entry]]] = []

    def reader(entry: Entry) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            for tensor, stage in seen:
                if tensor is value:
                    stage.append(entry)
                    return
            seen.append((value, [entry]))

        return read

    readers = {path: reader(entry) for path, entry in plain.items()}
    with torch.no_grad(), watched(model, readers):
        call(model, batch)
    return [stage for _, stage in seen]


def _is_plain(model: nn.Module, site: Site) -> bool:
    one = len(site.uses) == 1 and len(site.aliases) == 1
    if not one or site.uses[0].view != "module" or site.groups > 1:
        return False
    if weight_of(model, Group((site,))).is_complex():
        return False  # the moments here are of real rows
    if site.op == "conv":  # patches know zeros around the image alone
        options = dict(site.options)
        zeros = options.get("padding_mode", "zeros") == "zeros"
        return zeros and not isinstance(options.get("padding"), str)
    return site.op == "linear"


def _moments(
    original: Originals, current: nn.Module, site: Site, batches: Sequence[Any]
) -> tuple[Moments, Moments, Moments]:
    """Return the moments of all rows, of a quarter held back, and of the other three.

    Products are of the rows' precision, sums of float64. The parts are whole batches where there
    are at least four.
    """
    held, rest = _Sums(), _Sums()
    for number, batch in enumerate(batches):
        with evaluating(current):
            was, now = original.input(site.path, number), input_at(current, site.path, batch)
        pairs = zip(
            rows_of(was, site, batch, len(batches)), rows_of(now, site, batch, len(batches))
        )
        for x, y in pairs:
            if len(batches) < 4:
                held.add(x[::4], y[::4])
                for start in (1, 2, 3):
                    rest.add(x[start::4], y[start::4])
            else:
                (rest if number % 4 else held).add(x, y)
    return _Sums.moments(held, rest), _Sums.moments(held), _Sums.moments(rest)


class _Sums:
    """Sums over rows: was, cross, now, and the sums of both sides; nothing grows with batches."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.rows = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows."""
        products = (x.T @ x, x.T @ y, y.T @ y, x.sum(0), y.sum(0))
        new = [product.double() for product in products]
        self.parts = [a + b for a, b in zip(self.parts, new)] if self.parts else new
        self.rows += len(x)

    @staticmethod
    def moments(*pools: _Sums) -> Moments:
        """Return the moments of all rows of several sums."""
        filled = [pool for pool in pools if pool.rows] or list(pools)
        rows = max(1, sum(pool.rows for pool in filled))
        was, cross, now, mean_was, mean_now = (
            torch.stack(parts).sum(0) / rows for parts in zip(*(pool.parts for pool in filled))
        )
        return Moments(was, cross, now, mean_was, mean_now, rows)
