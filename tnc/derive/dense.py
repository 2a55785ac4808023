"""The contractions of a network: its dense weight, and its action on an input, or mode by mode."""

from __future__ import annotations

from tnc.derive.contraction import Contraction
from tnc.net import Axis, Network

INPUT, ROWS = "input", "rows"
"""The operand name of the activation, and the index name of its leading (batch) dimension."""


def dense(network: Network) -> Contraction:
    """Return the dense weight: output legs, then input legs.

    `W[o.., i..] = sum over bonds of the product of all cores`. A leg that is input and output at
    once (block-diagonal) gets a primed copy on the input side, tied by an identity operand that is
    named `identity:LEG`.

    >>> from tnc.net import parse_network
    >>> dense(parse_network("B[o r] A[r i] : i -> o | i=3 o=2 r=1")).output
    ('o', 'i')
    """
    equation = network.equation
    primed = {name: copy_of(name, network) for name in equation.shared}
    sizes = dict(network.sizes) | {copy: network.size[name] for name, copy in primed.items()}
    names = [core.name for core in equation.cores]
    operands: list[Axis] = [core.indices for core in equation.cores]
    for name, copy in primed.items():
        names.append(f"identity:{name}")
        operands.append((name, copy))
    inputs = tuple(primed.get(name, name) for name in equation.input_indices)
    return Contraction(
        tuple(names),
        tuple(operands),
        equation.output_indices + inputs,
        tuple(sorted(sizes.items())),
    )


def forward(network: Network, rows: int) -> Contraction:
    """Return the action on `rows` inputs: `input[rows, i..]` and the cores to `[rows, o..]`."""
    equation = network.equation
    sizes = dict(network.sizes) | {ROWS: rows}
    return Contraction(
        (INPUT, *(core.name for core in equation.cores)),
        ((ROWS, *equation.input_indices), *(core.indices for core in equation.cores)),
        (ROWS, *equation.output_indices),
        tuple(sorted(sizes.items())),
    )


def modewise(network: Network, rows: int) -> Contraction:
    """Return the action mode by mode: `input[rows, i.., modes..]` to `[rows, o.., modes..]`.

    The first input axis is summed, all others are modes: each has a matrix of its own.
    """
    equation = network.equation
    modes = tuple(name for axis in equation.inputs[1:] for name in axis)
    return Contraction(
        (INPUT, *(core.name for core in equation.cores)),
        ((ROWS, *equation.input_indices), *(core.indices for core in equation.cores)),
        (ROWS, *equation.output_indices, *modes),
        tuple(sorted((dict(network.sizes) | {ROWS: rows}).items())),
    )


def copy_of(name: str, network: Network) -> str:
    """Return a primed name that the network does not use."""
    copy = name + "'"
    while copy in network.size:
        copy += "'"
    return copy
