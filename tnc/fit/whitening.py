"""Whitening: carry a weight to where the metric is the plain norm, and cores back.

Each core gets, on each side, the marginal of the moment over the legs that it alone carries, block
by block over the legs that it shares. The equation stays the same, so that any fit of the plain
norm works on the whitened weight. Exact where all legs of a side that has a metric hang on one
core and no other; else a good start for alternating least squares in the true metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tnc.derive import dense
from tnc.fit.folding import side_legs
from tnc.fit.marginal import fold_moments, starred
from tnc.fit.metric import Metric
from tnc.fit.named_einsum import Named, einsum
from tnc.net import Axis, Core, Network, Signature


@dataclass(frozen=True, eq=False)
class Whitening:
    """One root and its inverse for each core and side: `(core, weight, back)` of named tensors."""

    network: Network
    steps: tuple[tuple[str, Named, Named], ...]

    def weight(self, folded: Tensor) -> Tensor:
        """Whiten a folded weight."""
        axes = dense(self.network).output
        for _, forth, _ in self.steps:
            folded = einsum([(folded, axes), _as(folded, forth)], _mapped(axes, forth))
        return folded

    def cores(self, cores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Carry the cores of a whitened weight back."""
        found = dict(cores)
        for name, _, back in self.steps:
            axes = self.network.equation.core(name).indices
            found[name] = einsum([(found[name], axes), _as(found[name], back)], _mapped(axes, back))
        return found


def whiten(network: Network, signature: Signature, metric: Metric) -> Whitening:
    """Return the whitening of a network; without a metric it does nothing."""
    steps = []
    for moment in fold_moments(metric, network, signature):
        copies = _weight_names(network, moment.side)
        for core in network.equation.cores:
            others = _carried_elsewhere(network, core)
            own = tuple(n for n in moment.legs if n in core.indices and n not in others)
            blocks = tuple(n for n in moment.legs if n in core.indices and n in others)
            if not own:
                continue
            root, back = moment.roots(own, blocks)
            axes = (*blocks, *own, *(map(starred, own) if moment.full else ()))
            forth = tuple(copies.get(n, n) for n in axes)
            steps.append((core.name, (root, forth), (back, axes)))
    return Whitening(network, tuple(steps))


def _as(like: Tensor, root: Named) -> Named:
    """Return a root in the dtype of what it acts on: complex weights have real metrics."""
    return root[0].to(like.dtype), root[1]


def is_exact(network: Network, metric: Metric) -> bool:
    """Tell whether whitening core by core is the metric itself."""
    for side in ("outputs", "inputs"):
        if metric.moment(side) is None:
            continue
        legs = set(side_legs(network, side))
        holders = [core for core in network.equation.cores if legs & set(core.indices)]
        if len(holders) != 1 or not legs <= set(holders[0].indices):
            return False
        if legs & set(network.equation.shared):
            return False
    return True


def trace_scale(network: Network, signature: Signature, metric: Metric) -> list[Named]:
    """Return what product whitening leaves out: for each side, weights over its shared legs.

    With N cores that own legs of a side, the product of their marginals is `trace^(N-1)` too large.
    """
    found: list[Named] = []
    for moment in fold_moments(metric, network, signature):
        elsewhere = [(c, _carried_elsewhere(network, c)) for c in network.equation.cores]
        owners = [
            core.name
            for core, others in elsewhere
            if any(n in core.indices and n not in others for n in moment.legs)
        ]
        held = {n for core, others in elsewhere for n in core.indices if n in others}
        shared = tuple(n for n in moment.legs if n in held)
        trace = moment.marginal((), shared)
        safe = trace.clamp_min(1e-300)
        found.append((safe ** (1 - len(owners)) * (trace > 0), shared))
    return found


def _carried_elsewhere(network: Network, core: Core) -> set[str]:
    equation = network.equation
    held = {n for other in equation.cores if other.name != core.name for n in other.indices}
    return held | set(equation.shared)


def _weight_names(network: Network, side: str) -> dict[str, str]:
    """Map legs to the names that the dense weight gives them: shared legs have a primed input."""
    whole = dense(network).output
    count = len(network.equation.output_indices)
    names = whole[count:] if side == "inputs" else whole[:count]
    return dict(zip(side_legs(network, side), names))


def _mapped(axes: Axis, root: Named) -> Axis:
    """Return `axes` after a root has acted: its starred copies stand for the originals."""
    return tuple(starred(n) if starred(n) in root[1] else n for n in axes)
