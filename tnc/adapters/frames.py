"""Frames: all cores of a network but one, such that the network is an isometry of that one core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from tnc.net import Core, Network, Signature, Structure


def refuses_frames(structure: Structure) -> str:
    """Say why the cores beside one cannot be made an isometry; empty when they can.

    Gauges of a tree do that: every leg belongs to one core, every bond joins two of them, and no
    two ways lead from one to another.
    """
    if len(structure.terms) > 1:
        return "frames are of one network, not of a sum"
    (term,) = structure.terms
    equation, signature = term.equation, structure.signature
    if any(core.stored for core in equation.cores):
        return "a sparse core has no frame"
    legs = {*equation.output_indices, *equation.input_indices}
    for name in equation.indices:
        count = sum(name in core.indices for core in equation.cores)
        if count != (1 if name in legs else 2):
            return f"index {name} of {equation} joins {count} cores: its frames are not orthogonal"
    pairs = {frozenset(_sharing(term, name)) for name in equation.indices if name not in legs}
    if len(pairs) != len(equation.cores) - 1:
        return f"{equation} has loops: its frames are not orthogonal"
    if _padded(term, signature):
        return f"{equation} pads its axes: what is cut off is not orthogonal"
    return ""


def _sharing(term: Network, name: str) -> list[str]:
    return [core.name for core in term.equation.cores if name in core.indices]


def _padded(term: Network, signature: Signature) -> bool:
    axes = (*term.equation.outputs, *term.equation.inputs)
    return [term.extent(axis) for axis in axes] != [*signature.outputs, *signature.inputs]


def framed(term: Network, cores: Mapping[str, Tensor], root: str) -> dict[str, Tensor]:
    """Return the cores with all but `root` orthonormal towards it; the product stays what it was.

    Towards the root, the bonds of a core are columns of an orthonormal matrix whose rows are its
    other indices (QR, from the leaves on), or zero where those are fewer. So `J` with
    `T = J root` has `J^T J = 1`, and `J J^T` projects onto what the root can reach.
    """
    found = dict(cores)
    for core, parent in _inwards(term, root):
        bonds = [name for name in core.indices if name in parent.indices]
        rest = [name for name in core.indices if name not in bonds]
        order = [core.indices.index(name) for name in (*rest, *bonds)]
        value = found[core.name].permute(order)
        sizes = value.shape
        width = prod(sizes[len(rest) :])
        q, r = torch.linalg.qr(value.reshape(-1, width))
        lack = width - q.shape[1]
        q = torch.nn.functional.pad(q, (0, lack))
        r = torch.nn.functional.pad(r, (0, 0, 0, lack))
        back = [order.index(axis) for axis in range(len(order))]
        found[core.name] = q.reshape(sizes).permute(back).contiguous()
        found[parent.name] = _taken(found[parent.name], parent, r, bonds)
    return found


def _inwards(term: Network, root: str) -> Iterator[tuple[Core, Core]]:
    """Yield every core but the root with its neighbour towards the root, leaves first."""
    cores = term.equation.cores
    reached = [term.equation.core(root)]
    edges: list[tuple[Core, Core]] = []
    for parent in reached:  # grows on the way
        for core in cores:
            if core not in reached and set(core.indices) & set(parent.indices):
                reached.append(core)
                edges.append((core, parent))
    yield from reversed(edges)


def _taken(value: Tensor, core: Core, factor: Tensor, bonds: list[str]) -> Tensor:
    """Multiply the bonds of a core by a square matrix, rows for what stays."""
    rest = [name for name in core.indices if name not in bonds]
    order = [core.indices.index(name) for name in (*bonds, *rest)]
    turned = value.permute(order)
    made = (factor @ turned.reshape(factor.shape[1], -1)).reshape(turned.shape)
    return made.permute([order.index(axis) for axis in range(len(order))]).contiguous()
