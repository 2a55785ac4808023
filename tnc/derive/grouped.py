"""Grouped convolutions: one group's map, written as the block-diagonal map of all groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tnc.derive.dense import copy_of
from tnc.net import Axis, Equation, Network


def grouped(network: Network, groups: int, transposed: bool = False) -> Network | None:
    """Return the network of a grouped convolution over all of its channels; None where none is.

    The weight of a convolution of g groups is `(o | i/g ..)`: its outputs count all groups. The
    leading legs of the output axis tell the group, so they become input legs too, and the cores
    that carry them are cut there: `B[o r]` becomes `B[g o r]`. A transposed convolution stores
    `(o/g | i ..)`, so there the leading input legs tell the group. Cores keep their memory: each is
    a reshape of the old one. None where no leg can be cut at the group.

    >>> from tnc.net import parse_network
    >>> whole = grouped(parse_network("B[o r] A[r i h] : i h -> o | i=2 h=3 o=8 r=2"), 4)
    >>> str(whole).split(" | ")[0]
    'B[g o r] A[r i h] : (g i) h -> (g o)'
    """
    if groups == 1:
        return network
    equation = network.equation
    told = equation.inputs[0] if transposed else equation.outputs[0]
    other = set(equation.output_indices if transposed else equation.input_indices)
    sizes, names, rest = dict(network.sizes), [], groups
    cuts: dict[str, Axis] = {}
    for leg in told:
        if rest == 1:
            break
        size = network.size[leg]
        if leg in other or (size % rest and rest % size):
            return None
        if size <= rest:
            names.append(leg)
            rest //= size
            continue
        name = copy_of("g", network) if "g" in network.size else "g"
        cuts[leg] = (name, leg)
        sizes |= {name: rest, leg: size // rest}
        names.append(name)
        rest = 1
    if rest > 1:
        return None
    return Network.of(_cut(equation, cuts, tuple(names), transposed), sizes)


def _cut(equation: Equation, cuts: Mapping[str, Axis], names: Axis, transposed: bool) -> Equation:
    def spread(axis: Axis) -> Axis:
        return tuple(part for name in axis for part in cuts.get(name, (name,)))

    inputs, outputs = [list(map(spread, axes)) for axes in (equation.inputs, equation.outputs)]
    (outputs if transposed else inputs)[0] = (*names, *(outputs if transposed else inputs)[0])
    cores = tuple(replace(core, indices=spread(core.indices)) for core in equation.cores)
    return Equation(cores, tuple(inputs), tuple(outputs))
