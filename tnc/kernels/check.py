"""Probabilistic equivalence: is a program its network, on random integers modulo a prime?

The program is interpreted as its steps say, through flat memory: a value is an array without shape,
read in the groups of whatever takes it, so that a wrong order of memory gives wrong numbers. Legs
are shrunk to sizes of 2 and 3 (those of size 1 stay), which changes no step. Two polynomials that
differ agree at a random point modulo a prime p with probability at most degree / p (Schwartz, 1980;
the check of superoptimisers such as Mirage), here for every entry of the result on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tnc.derive.dense import INPUT, ROWS
from tnc.errors import KernelError
from tnc.kernels.program import Copy, Matrix, Multiply, Program, extent
from tnc.net import Axis, Equation, Network

PRIME = 32_749
"""Products of two residues, summed 2^33 times, fit 64 bits."""
SAMPLES = 2
"""Rows of the input."""
MANY = 12
"""Networks with more legs have all of size 2."""

Residues = NDArray[np.int64]


def require(network: Network, program: Program) -> None:
    """Raise KernelError where a program does not compute its network."""
    reason = wrong(network, program)
    if reason:
        raise KernelError(
            f"a generated program does not compute its network: {reason}",
            where=f"{network}\n{program}",
            hint="please report it; `tnc.nn.generated.plain_kernels()` computes without it",
        )


def wrong(network: Network, program: Program) -> str:
    """Say why a program does not compute its network; empty where it does.

    Programs that differ in sizes alone are interpreted once (below 3 ms).
    """
    small = _shrunk(network)
    return _wrong(network.equation, small, replace(program, sizes=small))


def _shrunk(network: Network) -> tuple[tuple[str, int], ...]:
    long = [name for name, size in network.sizes if size > 1]
    small = {name: 2 if len(long) > MANY or place % 2 else 3 for place, name in enumerate(long)}
    return tuple((name, small.get(name, 1)) for name, _ in network.sizes)


@lru_cache(maxsize=8192)
def _wrong(equation: Equation, sizes: tuple[tuple[str, int], ...], program: Program) -> str:
    size = dict(sizes) | {ROWS: SAMPLES}
    drawn = np.random.default_rng(0)
    legs = {core.name: core.indices for core in equation.cores}
    cores = {name: drawn.integers(PRIME, size=_shape(axis, size)) for name, axis in legs.items()}
    x = drawn.integers(PRIME, size=_shape((ROWS, *equation.input_indices), size))
    given = [((ROWS, *equation.input_indices), x), *((legs[name], cores[name]) for name in legs)]
    wanted = (ROWS, *equation.output_indices)
    try:
        found = _interpreted(program, size, x.reshape(-1), legs, cores)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        return f"it cannot be run: {error}"
    if program.output != wanted:
        return f"its output lies as [{' '.join(program.output)}], not as [{' '.join(wanted)}]"
    if not np.array_equal(found, contracted(given, wanted).reshape(-1)):
        return f"it gives other numbers, modulo {PRIME} on random integers"
    return ""


def _interpreted(
    program: Program,
    size: Mapping[str, int],
    x: Residues,
    legs: Mapping[str, Axis],
    cores: Mapping[str, Residues],
) -> Residues:
    """Carry the steps out on flat memory."""
    values = {INPUT: x}
    for operand in program.operands:
        parts = [(legs[name], cores[name]) for name in operand.cores]
        values[operand.name] = contracted(parts, operand.layout).reshape(-1)
    last = INPUT
    for step in program.steps:
        if isinstance(step, Copy):
            order = [step.before.index(name) for name in step.after]
            value = values[step.source].reshape(_shape(step.before, size)).transpose(order)
            last = step.result
        else:
            value, last = _multiplied(step, values, size), step.result.value
        values[last] = value.reshape(-1)
    return values[last]


def _multiplied(
    step: Multiply, values: Mapping[str, Residues], size: Mapping[str, int]
) -> Residues:
    left, right = (_seen(matrix, values, size) for matrix in (step.left, step.right))
    spec = f"{step.left.roles},{step.right.roles}->{step.result.roles}"
    found: Residues = np.einsum(spec, left, right) % PRIME
    stated = tuple(extent(group, size) for group in step.result.groups)
    if found.shape != stated:
        raise ValueError(f"{step.result} has shape {found.shape}, its groups say {stated}")
    return found


def _seen(matrix: Matrix, values: Mapping[str, Residues], size: Mapping[str, int]) -> Residues:
    return values[matrix.value].reshape([extent(group, size) for group in matrix.groups])


def contracted(parts: Sequence[tuple[Axis, Residues]], output: Axis) -> Residues:
    """Contract tensors modulo the prime, one after another: next whatever keeps results small."""
    (axis, value), *rest = parts
    while rest:
        ways = []
        for place, (other, _) in enumerate(rest):
            needed = set(output).union(*(a for p, (a, _) in enumerate(rest) if p != place))
            kept = tuple(name for name in dict.fromkeys((*axis, *other)) if name in needed)
            ways.append((len(kept), place, kept))
        _, place, kept = min(ways)
        other, factor = rest.pop(place)
        value, axis = _product(value, axis, factor, other, kept), kept
    number = {name: place for place, name in enumerate(axis)}
    found: Residues = np.einsum(value, list(number.values()), [number[name] for name in output])
    return found % PRIME


def _product(left: Residues, a: Axis, right: Residues, b: Axis, kept: Axis) -> Residues:
    number = {name: place for place, name in enumerate(dict.fromkeys((*a, *b)))}
    axes = ([number[name] for name in names] for names in (a, b, kept))
    first, second, result = axes
    found: Residues = np.einsum(left, first, right, second, result)
    return found % PRIME


def _shape(axis: Axis, size: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(size[name] for name in axis)
