"""Layers that read one tensor compute what they have in common once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tnc.derive.halves import common_front
from tnc.nn import LinearView, StructuredLayer
from tnc.nn.batched import cannot
from tnc.nn.shared_input import may_own, share_inputs_
from tnc.rewrite import Exact, Pass, Subject, passes


@passes.register("fuse-horizontally")
@dataclass(frozen=True)
class FuseHorizontally(Pass):
    """`y_k = B_k (A x)`: the product `A x` of the layers that hold one `A` is computed once.

    Query, key and value fitted with `shares: true`, or any structured linear layers that read one
    tensor and whose cores on the side of the input are one parameter. Parameters and names stay as
    they are; the nearest module whose forward calls all of them keeps the product while it runs
    (`tnc.nn.shared_input`). Chosen where it saves FLOPs, used where the input is not too small.
    Low-rank layers of one structure and a small rank, without a common core, become one batch of
    products where that is predicted to save a tenth of their time for the rows that come; with
    gradients each is applied alone, as before. All others are left.
    """

    contract = Exact(1e-5)

    def apply(self, subject: Subject) -> Subject:
        lines = []
        for names in subject.trace.shared_inputs:
            found = _layers(subject.model, names)
            groups = _holding_one_core(found)
            if len(found) > 1 and len(groups) == len(found):
                lines.append(_batched(subject, found))
            for paths in groups:
                if len(paths) > 1:
                    lines.append(_fused(subject, {path: found[path] for path in paths}))
        return subject.edited(*lines or ("no structured layers read one tensor",))


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, StructuredLayer]:
    """Return the structured linear layers that took the place of weights, by path."""
    found = {}
    for name in names:
        path = name.rpartition(".")[0]
        try:
            layer = model.get_submodule(path)
        except AttributeError:
            continue
        if type(layer) is StructuredLayer and isinstance(layer.view, LinearView):
            found[path] = layer
    return found


def _holding_one_core(layers: dict[str, StructuredLayer]) -> list[list[str]]:
    """Group layers that hold a core in common; a layer without a partner is a group of its own."""
    groups: list[list[str]] = []
    for path in sorted(layers):
        held = _held(layers[path])
        for group in groups:
            if held & _held(layers[group[0]]) and layers[path].view == layers[group[0]].view:
                group.append(path)
                break
        else:
            groups.append([path])
    return groups


def _held(layer: StructuredLayer) -> set[tuple[str, int]]:
    return {(name, id(core)) for name, core in layer.cores.items()}


def _fused(subject: Subject, layers: dict[str, StructuredLayer]) -> str:
    """Fuse a group of layers, or leave it; return the line that tells so."""
    listed = ", ".join(layers)
    held = set.intersection(*map(_held, layers.values()))
    structures = [layer.structure for layer in layers.values()]
    rows = max(getattr(layer.view, "rows", 1) for layer in layers.values())
    front = common_front(structures, sorted({name for name, _ in held}), rows)
    if not front:
        return f"left {listed}: computing their common cores first saves no FLOPs"
    place, reason = _owner(subject, list(layers))
    if reason:
        return f"left {listed}: {reason}"
    below = [path.removeprefix(f"{place}.") if place else path for path in layers]
    share_inputs_(subject.model.get_submodule(place), below, front)
    return f"{listed} compute {', '.join(front)} once, within {place or 'the model'}"


def _batched(subject: Subject, layers: dict[str, StructuredLayer]) -> str:
    """Let small layers without a common core be one batch, or leave them; say which."""
    listed = ", ".join(layers)
    every = list(layers.values())
    reason = cannot(every)
    if reason:
        return f"left {listed}: they hold no core in common, and {reason}"
    place, reason = _owner(subject, list(layers))
    if reason:
        return f"left {listed}: {reason}"
    below = [path.removeprefix(f"{place}.") if place else path for path in layers]
    share_inputs_(subject.model.get_submodule(place), below, ())
    return f"{listed} are one batch of products where that is faster, within {place or 'the model'}"


def _owner(subject: Subject, paths: Sequence[str]) -> tuple[str, str]:
    """Return the nearest module that calls all layers, or why there is none."""
    place, reason = paths[0], ""
    while place:
        place = place.rpartition(".")[0]
        if place and not all(path.startswith(f"{place}.") for path in paths):
            continue
        if place and not subject.trace.calls.get(place):
            continue  # a container, whose forward is not called
        reason = may_own(subject.model.get_submodule(place))
        if not reason:
            return place, ""
    return "", reason
