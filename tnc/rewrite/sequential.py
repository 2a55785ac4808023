"""Sequential refit: later layers are fitted to the inputs that compressed earlier ones produce."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.batches import call, kept_rows
from tnc.capture.moments import patches
from tnc.capture.undisturbed import evaluating
from tnc.decide.group import Group
from tnc.decide.plan import Entry
from tnc.decide.site import Site
from tnc.fit import Metric
from tnc.rewrite.edit import bias_of
from tnc.rewrite.factorizing import factorize_entry, sites_of
from tnc.rewrite.fitting import metric_of, shrinkage, weight_of
from tnc.rewrite.subject import Subject

KEEP_BYTES = 2 << 30
"""How many bytes of the original's activations are kept; beyond it they are computed again."""

PIXELS = 1 << 17
"""About how many patches of a convolution are looked at: evenly spread over all of them."""


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


class _Reached(Exception):
    """Stops a forward at the layer that is asked about."""


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
    known = _Originals(original, paths, batches, subject.room)
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
    with torch.no_grad(), _hooked(model, readers):
        call(model, batch)
    return [stage for _, stage in seen]


def _is_plain(model: nn.Module, site: Site) -> bool:
    one = len(site.uses) == 1 and len(site.aliases) == 1
    if not one or site.uses[0].view != "module" or site.groups > 1:
        return False
    if weight_of(model, Group((site,))).is_complex():
        return False  # the moments here are of real rows
    return site.op == "linear" or (site.op == "conv" and _is_unfolded(site))


def _is_unfolded(site: Site) -> bool:
    """Whether a convolution is a matrix product with the patches that `patches` gives."""
    options = dict(site.options)
    zeros = options.get("padding_mode", "zeros") == "zeros"
    plain = not options.get("transposed") and not isinstance(options.get("padding"), str)
    return zeros and plain and len(site.signature.inputs) == 3


def _moments(
    original: _Originals, current: nn.Module, site: Site, batches: Sequence[Any]
) -> tuple[Moments, Moments, Moments]:
    """Return the moments of all rows, of a quarter held back, and of the other three.

    Products are of the rows' precision, sums of float64. The parts are whole batches where there
    are at least four.
    """
    held, rest = _Sums(), _Sums()
    for number, batch in enumerate(batches):
        with evaluating(current):
            was, now = original.input(site.path, number), _input_at(current, site.path, batch)
        pairs = zip(_rows(was, site, batch, len(batches)), _rows(now, site, batch, len(batches)))
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


class _Originals:
    """What the layers of the original read, kept where it fits into `KEEP_BYTES`."""

    def __init__(
        self, model: nn.Module, paths: Sequence[str], batches: Sequence[Any], room: int | None
    ) -> None:
        self._model, self._batches = model, batches
        self._kept: dict[tuple[str, int], Tensor] = {}
        room = KEEP_BYTES if room is None else room
        for number, batch in enumerate(batches):
            found = _inputs_at(model, paths, batch)
            room -= sum(tensor.numel() * tensor.element_size() for tensor in found.values())
            if room < 0:
                break
            self._kept.update({(path, number): tensor for path, tensor in found.items()})

    def input(self, path: str, number: int) -> Tensor:
        """Return the tensor that a layer reads in a batch."""
        kept: Tensor | None = self._kept.pop((path, number), None)
        return kept if kept is not None else _input_at(self._model, path, self._batches[number])


def _inputs_at(model: nn.Module, paths: Sequence[str], batch: Any) -> dict[str, Tensor]:
    """Run a model once and return the tensors that several layers read."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            found[path] = value.detach().clone()  # later code may write to it

        return hook

    with torch.no_grad(), _hooked(model, {path: keep(path) for path in paths}):
        call(model, batch)
    return found


def _input_at(model: nn.Module, path: str, batch: Any) -> Tensor:
    """Run a model until it reaches a layer and return the tensor that the layer reads."""
    found: list[Tensor] = []

    def stop(value: Tensor) -> None:
        found.append(value.detach())
        raise _Reached

    with torch.no_grad(), _hooked(model, {path: stop}), suppress(_Reached):
        call(model, batch)
    return found[0]


def _rows(tensor: Tensor, site: Site, batch: Any, batches: int) -> Iterator[Tensor]:
    """Yield the vectors that a layer multiplies, in parts.

    Vectors that the batch's mask leaves out are left out; of patches about `PIXELS` are taken.
    """
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    if site.op == "conv":
        images = tensor if tensor.dim() == 4 else tensor.unsqueeze(0)
        pixels = max(1, site.work.rows) * len(images) * batches
        step = -(-pixels // PIXELS)
        step += step > 1 and step % 2 == 0  # an odd step meets all columns of the image
        for rows in patches(images, site.signature.inputs[1:], dict(site.options)):
            yield rows[::step]
        return
    rows = tensor.flatten(0, -2)
    count, kept = kept_rows(batch, "attention_mask")
    yield rows[kept] if kept is not None and len(rows) == count else rows


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Let functions see what layers read, given by place or by name (`layer(input=x)`)."""

    def seen(look: Callable[[Tensor], None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            look(args[0] if args else next(iter(kwargs.values())))

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(seen(look), with_kwargs=True)
        for path, look in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
