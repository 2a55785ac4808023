"""Measure what flows through the sites of a model on calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tnc.capture.batches import (
    call,
    differentiable_batch,
    held_back,
    kept_rows,
    sample_count,
)
from tnc.capture.measured import Measured, Measurements
from tnc.capture.meter import Meter
from tnc.capture.observe import observe
from tnc.capture.undisturbed import differentiable, evaluating
from tnc.capture.weights import Weights
from tnc.decide.site import Site
from tnc.errors import CaptureError

Probe = Callable[[Any, Any, Generator], Tensor]
Progress = Callable[[str, int, int], None]


def measure(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[Any],
    *,
    gradients: Probe | None = None,
    weigh: Probe | None = None,
    probes: int = 1,
    seed: int = 0,
    limit: int = 8192,
    masked: str | None = "attention_mask",
    samples: Callable[[Any], int] = sample_count,
    apart: bool = False,
    progress: Progress | None = None,
) -> Measurements:
    """Stream batches through the model and sum up moments; memory does not grow with batches.

    A batch is a mapping (kwargs), a tuple or list (args) or one tensor. `gradients(output, batch,
    generator)` returns a scalar; it is called `probes` times a batch. So does `weigh`, of which a
    mean square is kept for every site, and which draws apart. Rows whose entry in the batch's
    `masked` tensor is zero are left out of activations with as many rows as it has entries (batch
    first); None keeps all. Sides of more than `limit` entries get the diagonal alone. The
    model is as before afterwards. Raises CaptureError when there is no batch or a forward fails.

    Of a sequence with enough batches a quarter (`held_back`) comes last, always, so that sums do
    not depend on `apart`: with it the figures without that quarter are kept too.
    """
    weights = Weights(model)
    meter = Meter(model, weights, sites, limit)
    draw, other = Generator().manual_seed(seed), Generator().manual_seed(seed + 1)
    scalars = [(gradients, draw)] * probes if gradients is not None else []
    scalars += [(weigh, other)] if weigh is not None else []
    meter.differentiate = bool(scalars)
    total = len(batches) if isinstance(batches, Sequence) else 0
    held = held_back(batches, samples) if isinstance(batches, Sequence) else ()
    count = seen = 0
    without = None
    for batch in _held_last(batches, held):
        if apart and held and count == total - len(held):
            without = _figures(meter, sites, count, seen, probes)
        meter.batch(*kept_rows(batch, masked))
        if not scalars:
            with evaluating(model):
                observe(model, weights, meter, partial(call, model, batch))
        else:
            _differentiate(model, weights, meter, batch, scalars, weigh is not None)
        count, seen = count + 1, seen + samples(batch)
        if progress:
            progress("measure", count, total)
    if not count:
        raise CaptureError("there is no calibration batch", hint="give at least one batch")
    if not seen:
        raise CaptureError(
            f"the {count} calibration batches hold no sample",
            where="calibration",
            hint="the first dimension of a batch counts its samples: give at least one",
        )
    found = _figures(meter, sites, count, seen, probes)
    _check_finite(found.sites)
    notes = _notes(meter, sites, found.sites, limit)
    return replace(found, notes=notes, held=held if apart else (), without=without)


def _held_last(batches: Iterable[Any], held: tuple[int, ...]) -> Iterator[Any]:
    late = []
    for number, batch in enumerate(batches):
        if number in held:
            late.append(batch)
        else:
            yield batch
    yield from late


def _figures(
    meter: Meter, sites: Sequence[Site], batches: int, samples: int, probes: int
) -> Measurements:
    """Return the figures of what was seen so far."""
    read = {name: _inputs(meter, name) for name in sorted(set(meter.leader.values()))}
    found = {site.name: _measured(meter, site, samples, probes, read) for site in sites}
    return Measurements(found, samples, batches)


def _check_finite(found: Mapping[str, Measured]) -> None:
    for name, figures in found.items():
        for what in ("moment", "mean", "outputs", "features"):
            figure = getattr(figures, what)
            if figure is not None and not bool(figure.isfinite().all()):
                side = "gradients of its outputs" if what in ("outputs", "features") else "inputs"
                raise CaptureError(
                    f"the {side} are not finite on the calibration data",
                    where=f"site {name}",
                    hint="look for NaN or infinite values in the data, then in the weights",
                )


def _differentiate(
    model: nn.Module,
    weights: Weights,
    meter: Meter,
    batch: Any,
    scalars: Sequence[tuple[Probe, Generator]],
    weigh: bool,
) -> None:
    """Run one batch with gradients to activations.

    Weights of products need none; vectors, tables and bare parameters keep theirs, so that every
    result lies on a path to one of them. Nothing is written to `.grad`. With `weigh` the
    last of the scalars weighs the sites.
    """
    with evaluating(model), differentiable(model, _cheap(model, meter)) as leaves:
        lifted, inputs = differentiable_batch(batch)
        output, _ = observe(
            model, weights, meter, lambda: call(model, lifted), around=torch.enable_grad
        )
        meter.before()
        for number, (gradients, generator) in enumerate(scalars, start=1):
            meter.weighing = weigh and number == len(scalars)
            with torch.enable_grad():
                scalar = gradients(output, batch, generator)
            if not scalar.requires_grad:
                raise CaptureError(
                    "the probe does not depend on the model's weights",
                    hint="return a scalar computed from the model's output, without detach",
                )
            torch.autograd.grad(
                scalar, [*leaves, *inputs], retain_graph=number < len(scalars), allow_unused=True
            )


def _cheap(model: nn.Module, meter: Meter) -> set[int]:
    """The ids of the parameters to keep gradients for: all but the weights of products."""
    products = meter.products
    return {
        id(p)
        for name, p in model.named_parameters()
        if p.is_floating_point() and name not in products
    }


def _inputs(meter: Meter, leader: str) -> tuple[Tensor | None, Tensor | None]:
    """Return moment and mean of what a group of sites reads, once for all of them."""
    inputs = meter.inputs[leader]
    return inputs.over(inputs.rows), inputs.mean()


def _measured(
    meter: Meter,
    site: Site,
    samples: int,
    probes: int,
    read: Mapping[str, tuple[Tensor | None, Tensor | None]],
) -> Measured:
    inputs = meter.inputs[meter.leader[site.name]]
    moment, mean = read[meter.leader[site.name]]
    frequencies = meter.tokens[site.name].share()
    looked_up = int(meter.tokens[site.name].counts.sum())
    pure = site.op == "embedding"
    weight = meter.weights.get(site.name)
    experts = site.signature.outputs[0] if site.op == "experts" else 1
    return Measured(
        site=site.name,
        rows=looked_up if pure else inputs.rows,
        samples=samples,
        moment=frequencies if pure else moment,
        mean=None if pure else mean,
        outputs=_outputs(meter, site, samples * probes),
        features=meter.features[site.name].over(samples * probes),
        frequencies=frequencies,
        weight=None if weight is None else weight / (samples * experts),
    )


def _outputs(meter: Meter, site: Site, count: int) -> Tensor | None:
    """Return the weights of a site's outputs; every expert has an equal share of their sum."""
    found = meter.outputs[site.name].over(count)
    if found is None or site.op != "experts":
        return found
    experts = site.signature.outputs[0]
    return (found / experts).repeat(experts)


def _notes(
    meter: Meter, sites: Sequence[Site], found: Mapping[str, Measured], limit: int
) -> tuple[str, ...]:
    notes = []
    for site in sites:
        measured = found[site.name]
        if site.groups > 1:
            notes.append(f"{site.name}: no input moment for {site.groups} groups")
        elif site.op == "experts" and measured.rows:
            notes.append(f"{site.name}: its experts are measured together, not one by one")
        elif measured.rows == 0 and site.op != "spectral" and not site.is_complex:
            notes.append(f"{site.name}: not reached by the calibration batches")
        if site.op == "spectral":
            told = (
                "E|x|^2 of each input and mode"
                if measured.rows
                else "no metric, it is read in parts"
            )
            notes.append(f"{site.name}: {told}; its outputs are not weighed")
            continue
        if site.is_complex:
            notes.append(f"{site.name}: complex, it is fitted in the plain norm")
            continue
        for side in ("moment", "outputs", "features"):
            tensor = getattr(measured, side)
            if tensor is not None and tensor.dim() == 1 and site.op not in ("embedding", "experts"):
                notes.append(f"{site.name}: {side} is its diagonal, {len(tensor)} > {limit}")
        grown = (measured.outputs, measured.features, measured.weight)
        reached = any(figure is not None for figure in grown)
        if meter.differentiate and (not reached or site.name in meter.unreached):
            notes.append(f"{site.name}: no gradient of the probe reaches some of its results")
    return tuple(sorted(notes))
