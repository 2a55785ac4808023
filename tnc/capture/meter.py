"""The listener that measures: input moments at every read, gradient Grams of every result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tnc.capture.moments import Frequency, MomentSum, patches
from tnc.capture.observe import Event
from tnc.capture.reads import Read, reads
from tnc.capture.record import own_names
from tnc.capture.weights import Weights
from tnc.decide.site import Site


class Meter:
    """Accumulators of a set of sites; sites that read the same tensors share their input moment.

    `rows` and `keep` are of the current batch: activations of `rows` rows keep only those rows.
    """

    def __init__(
        self, model: nn.Module, weights: Weights, sites: Sequence[Site], limit: int
    ) -> None:
        self._weights, self._sites = weights, {site.name: site for site in sites}
        self._own = {path: own_names(module, weights) for path, module in model.named_modules()}
        self.leader = _leaders(sites)
        looked_up = {s.name for s in sites if any(use.op == "embedding" for use in s.uses)}
        self.products = {a for s in sites if s.name not in looked_up for a in s.aliases}
        self.inputs = {
            name: MomentSum(
                prod(self._sites[name].signature.inputs), _wide(self._sites[name], limit)
            )
            for name in set(self.leader.values())
        }
        self.outputs = {s.name: _results(s, limit) for s in sites}
        self.features = {s.name: _moment(prod(s.signature.inputs), limit) for s in sites}
        self.tokens = {s.name: Frequency(s.signature.outputs[0]) for s in sites}
        self.rows = 0
        self.keep: Tensor | None = None
        self.weights = dict[str, float]()
        self.weighing = False
        self.differentiate, self.unreached = False, set[str]()
        self._waiting: list[tuple[Tensor, Read]] = []

    def before(self) -> None:
        """Hook the results of earlier reads: autograd has taken note of them by now."""
        waiting, self._waiting = self._waiting, []
        for out, read in waiting:
            if out.requires_grad:
                out.register_hook(partial(self._add_gradient, read))  # type: ignore[no-untyped-call]
            else:
                self.unreached.add(read.name)

    def batch(self, rows: int, keep: Tensor | None) -> None:
        """Start a batch with its mask."""
        self.rows, self.keep = rows, keep

    def step(self, event: Event) -> None:
        """Add what the operation reads; remember its result for gradients."""
        own = self._own.get(event.place, frozenset())
        for read in reads(event.op, event.args, event.kwargs, self._weights, own):
            if read.name in self._sites and read.kind:
                with torch.no_grad():
                    self._add_input(read)
                if self.differentiate and not _is_plain(self._sites[read.name]):
                    self._waiting.append((event.out, read))

    def _add_input(self, read: Read) -> None:
        assert read.data is not None
        data, name = read.data.detach(), read.name
        if read.kind == "embedding":
            self.tokens[name].add(self._kept(data.reshape(-1)))
            return
        if self.leader[name] != name:
            return
        moment, site = self.inputs[name], self._sites[name]
        if read.kind == "spectral":
            if read.part == 1:
                moment.add_squares(_energies(read, site), data.shape[1 if not read.columns else 2])
            return
        if site.is_complex:
            return
        if read.kind == "conv":
            if site.groups == 1:
                for rows in patches(data, site.signature.inputs[1:], dict(read.options)):
                    moment.add(rows)
            return
        moment.add(self._kept(_as_rows(data, read.columns)))

    def _add_gradient(self, read: Read, grad: Tensor) -> None:
        grad = grad.detach()
        if read.kind == "conv":
            rows = grad.movedim(1, -1).reshape(-1, self._sites[read.name].signature.outputs[0])
        else:
            rows = _as_rows(grad, read.columns)
        rows = self._kept(rows) if read.kind != "conv" else rows
        if self.weighing:
            size = rows.shape[1] if read.kind == "embedding" else self.outputs[read.name].size
            square = float(rows.double().square().sum()) / size
            self.weights[read.name] = self.weights.get(read.name, 0.0) + square
            return
        to = self.features if read.kind == "embedding" else self.outputs
        to[read.name].add(rows, 0 if read.kind == "embedding" else read.first)

    def _kept(self, rows: Tensor) -> Tensor:
        if self.keep is None or len(rows) != self.rows:
            return rows
        return rows[self.keep.to(rows.device)]


def _is_plain(site: Site) -> bool:
    """Whether the outputs of a site are not weighed: they are complex, or differ by mode."""
    return site.is_complex or site.op == "spectral"


def _energies(read: Read, site: Site) -> Tensor:
    """Return the sum over rows of `|x|^2`, (i * modes) in the order of the map."""
    assert read.data is not None
    squares = read.data.abs().square().sum(2 if read.columns else 1)
    sizes = dict(zip(site.order, site.signature.shape))
    modes = site.order[2:]
    missing = [axis for axis in modes if axis not in read.joined]
    axes = (*missing, *read.joined)
    folded = squares.reshape([*(sizes[axis] for axis in axes), squares.shape[-1]])
    return folded.permute(len(axes), *(axes.index(axis) for axis in modes)).reshape(-1)


def _as_rows(data: Tensor, columns: bool) -> Tensor:
    if data.dim() == 1:
        return data.unsqueeze(0)
    return (data.transpose(-1, -2) if columns else data).flatten(0, -2)


def _leaders(sites: Sequence[Site]) -> dict[str, str]:
    """Give every site the first site that reads the same tensors."""
    first: dict[Any, str] = {}
    found = {}
    for site in sorted(sites, key=lambda s: s.name):
        key: Any = tuple((u.op, u.reads, u.rows) for u in site.uses if u.op == "linear")
        known = bool(key) and all(use.reads for use in site.uses)
        place = (key if known else site.name, site.signature.inputs)
        found[site.name] = first.setdefault(place, site.name)
    return found


def _moment(size: int, limit: int) -> MomentSum:
    return MomentSum(size, size > limit)


def _results(site: Site, limit: int) -> MomentSum:
    """Sum up gradients: of a stack of experts for all of them at once, each entry by itself."""
    size = site.signature.outputs[-1]
    return MomentSum(size, site.op == "experts" or size > limit)


def _wide(site: Site, limit: int) -> bool:
    return site.op == "spectral" or prod(site.signature.inputs) > limit
