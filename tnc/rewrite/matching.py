"""Matching the outputs of a compressed model's layers to the original's, channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tnc.capture.batches import call, kept_rows
from tnc.capture.undisturbed import evaluating
from tnc.nn import ConvView, StructuredLayer
from tnc.rewrite.edit import is_watched
from tnc.rewrite.subject import Subject

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
KEEP_BYTES = 1 << 30
"""How many bytes of the original's results are kept; beyond it they are computed again."""
LARGEST = 4.0
"""Scales beyond this factor, or below none, say that there is nothing left to match."""


class _Reached(Exception):
    """Stops a forward at the layer that is asked about."""


def matched(subject: Subject, batches: Sequence[Any]) -> Subject:
    """Correct every layer from the first structured convolution on.

    Returns the subject with one line for each layer that is left. Models without structured
    convolutions are left whole: the sequential refit of linear layers does more for them.
    """
    original, model = cast("nn.Module", subject.original), subject.model
    order = _order(model, batches[0])
    first = next((n for n, p in enumerate(order) if _structured(model, p)), None)
    if first is None:
        return subject.edited("nothing matched: no structured convolution runs once")
    known = _Originals(original, order[first:], batches)
    lines: list[str] = []
    changed = 0
    for path in order[first:]:
        reason = _refused(original, model, path)
        if reason:
            lines.append(f"{path}: left, {reason}")
            continue
        sums = [_Sums(), _Sums()]
        for number, batch in enumerate(batches):
            side = sums[number % 2]
            side.add(known.rows(path, number), _result(model, path, batch))
        reason = _correct_(model.get_submodule(path), sums)
        changed += not reason
        if reason:
            lines.append(f"{path}: left, {reason}")
    return subject.edited(f"matched the outputs of {changed} layers", *lines)


class _Originals:
    """What the layers of the original return, kept where it fits into `KEEP_BYTES`."""

    def __init__(self, model: nn.Module, paths: Sequence[str], batches: Sequence[Any]) -> None:
        self._model, self._batches = model, batches
        self._kept: dict[tuple[str, int], Tensor] = {}
        layers = [(p, m) for p, m in model.named_modules() if p in set(paths)]
        room = KEEP_BYTES
        for number, batch in enumerate(batches):
            found: dict[str, Tensor] = {}
            with ExitStack() as hooks, torch.no_grad():
                for path, layer in layers:
                    hooks.enter_context(_hook(layer, _keeper(found, path, batch)))
                with evaluating(model):
                    call(model, batch)
            room -= sum(rows.numel() * rows.element_size() for rows in found.values())
            if room < 0:
                break
            self._kept.update({(path, number): rows for path, rows in found.items()})

    def rows(self, path: str, number: int) -> Tensor:
        """Return the results of a layer for a batch."""
        kept: Tensor | None = self._kept.pop((path, number), None)
        return kept if kept is not None else _result(self._model, path, self._batches[number])


def _keeper(found: dict[str, Tensor], path: str, batch: Any) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        found[path] = _rows(module, output.detach(), batch).clone()  # later code may write to it

    return hook


class _Sums:
    """Sums over rows of y, y', y^2, y'^2 and y y' for every channel, float64."""

    def __init__(self) -> None:
        self.rows = 0
        self.sums: Tensor | None = None

    def add(self, was: Tensor, now: Tensor) -> None:
        """Add rows (rows, channels)."""
        a, b = was.double(), now.double()
        new = torch.stack([a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0)])
        self.sums = new if self.sums is None else self.sums + new
        self.rows += len(a)

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return means, variances and covariance: (E y, E y', var y, var y', cov)."""
        assert self.sums is not None
        a, b, aa, bb, ab = self.sums / self.rows
        return a, b, aa - a * a, bb - b * b, ab - a * b

    def __add__(self, other: _Sums) -> _Sums:
        made = _Sums()
        made.rows = self.rows + other.rows
        parts = [s.sums for s in (self, other) if s.sums is not None]
        made.sums = torch.stack(parts).sum(0) if parts else None
        return made

    def error(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Return `E |y - scale y' - shift|^2` summed over channels."""
        a, b, va, vb, cov = self.moments()
        gap = a - scale * b - shift
        return (va + scale**2 * vb - 2 * scale * cov + gap**2).sum()


def _correct_(layer: nn.Module, halves: Sequence[_Sums]) -> str:
    """Correct a layer in place; return why not, where it is better left as it is."""
    filled = [half for half in halves if half.rows]
    scalable = not isinstance(layer, StructuredLayer) or _carrier(layer) is not None
    if len(filled) == 2:
        scale, shift = _affine(filled[0], scalable)
        kept = filled[1].error(torch.ones_like(scale), torch.zeros_like(shift))
        if filled[1].error(scale, shift) >= kept:
            return "the correction does no better on data held back"
    scale, shift = _affine(halves[0] + halves[1], scalable)
    bias = cast("nn.Parameter", layer.bias)
    with torch.no_grad():
        bias.copy_(bias.double() * scale.to(bias.device) + shift.to(bias.device))
        if isinstance(layer, StructuredLayer):
            carrier = _carrier(layer)
            if carrier is not None:
                _scale_core_(layer, *carrier, scale)
        else:
            weight = cast("nn.Parameter", layer.weight)
            weight.mul_(_along(scale, weight.dim(), 0).to(weight))
    return ""


def _scale_core_(layer: StructuredLayer, name: str, place: int, scale: Tensor) -> None:
    """Multiply a core along one of its axes, a sparse one at its stored entries."""
    core, shape = cast("Tensor", layer.cores[name]), layer.structure.shapes[name]
    spread = _along(scale, len(shape), place)
    if name in layer.structure.stored:
        spread = spread.expand(shape).reshape(-1)[layer.positions[name].long()]
    core.mul_(spread.to(core))


def _affine(sums: _Sums, scalable: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift of the least squares fit of y by y'."""
    a, b, _, variance, cov = sums.moments()
    scale = torch.ones_like(a)
    if scalable:
        level = 1e-6 * variance.mean() + 1e-30
        fitted = cov / (variance + level)
        sound = (variance > level) & (fitted > 0) & (fitted < LARGEST)
        scale = torch.where(sound, fitted, scale)
    return scale, a - scale * b


def _along(scale: Tensor, dims: int, place: int) -> Tensor:
    return scale.view(*(-1 if axis == place else 1 for axis in range(dims)))


def _carrier(layer: StructuredLayer) -> tuple[str, int] | None:
    """Return the only core with the whole output leg, and the leg's place in it."""
    structure = layer.structure
    if len(structure.terms) != 1:
        return None
    term = structure.terms[0]
    legs = term.equation.outputs[0]
    if len(legs) != 1 or term.signature.outputs != structure.signature.outputs:
        return None
    holders = [core for core in term.equation.cores if legs[0] in core.indices]
    if not holders or structure.kinds[holders[0].name] == "constant":
        return None
    core = holders[0]  # an output leg that meets several cores is scaled once
    return core.name, core.indices.index(legs[0])


def _structured(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path)
    return isinstance(layer, StructuredLayer) and _is_convolution(layer)


def _is_convolution(layer: nn.Module) -> bool:
    if isinstance(layer, StructuredLayer):
        return isinstance(layer.view, ConvView)
    return isinstance(layer, _ConvNd)


def _refused(original: nn.Module, model: nn.Module, path: str) -> str:
    layer = model.get_submodule(path)
    if getattr(layer, "bias", None) is None:
        return "it has no bias"
    if is_watched(layer):
        return "a hook watches it"
    owned = list(layer.parameters())
    if any(p.is_complex() for p in owned):
        return "it is complex"
    everywhere = [p for m in model.modules() for p in m._parameters.values()]
    if any(sum(p is other for other in everywhere) > 1 for p in owned):
        return "its parameters are shared"
    if any(not p.requires_grad for p in owned):
        return "it is frozen"
    try:
        original.get_submodule(path)
    except AttributeError:
        return "the original has no such module"
    return ""


def _order(model: nn.Module, batch: Any) -> list[str]:
    """Return the layers by path that run once in a forward, in the order of execution."""
    found: list[str] = []

    def keep(path: str) -> Callable[..., None]:
        return lambda module, args, output: found.append(path)

    kinds = (StructuredLayer, *DENSE)
    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
    handles = [m.register_forward_hook(keep(path)) for path, m in layers]
    try:
        with evaluating(model), torch.no_grad():
            call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [path for path in found if found.count(path) == 1]


def _result(model: nn.Module, path: str, batch: Any) -> Tensor:
    """Run a model up to a layer and return its results, (rows, channels)."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output.detach())
        raise _Reached

    layer = model.get_submodule(path)
    with evaluating(model), _hook(layer, stop), torch.no_grad(), suppress(_Reached):
        call(model, batch)
    return _rows(layer, found[0], batch)


def _rows(layer: nn.Module, result: Tensor, batch: Any) -> Tensor:
    """Return results as (rows, channels), without the rows that the batch's mask leaves out."""
    if _is_convolution(layer):
        return result.movedim(1, -1).flatten(0, -2)
    rows = result.flatten(0, -2)
    count, kept = kept_rows(batch, "attention_mask")
    return rows[kept] if kept is not None and len(rows) == count else rows


@contextmanager
def _hook(layer: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
