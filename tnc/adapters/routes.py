"""The ways through a structure that is a sum of chains: down to a bond, and up to the outputs.

Derived from the equations alone, so every method whose delta has the form is applied by the same
products, whatever it trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from string import ascii_letters

from tnc.net import Core, Network, Structure


@dataclass(frozen=True)
class Route:
    """One chain: `up . middle . down`.

    `down` is the core with all inputs and one bond, read as (bond, inputs..) after a permutation by
    `down_order`; `up` that with all outputs, read as (outputs, bond). `middle` are the cores
    between, which `equation` makes the vector or matrix that the columns of `up` are multiplied by;
    without any it is empty.
    """

    down: str
    down_order: tuple[int, ...]
    up: str
    up_order: tuple[int, ...]
    middle: tuple[str, ...] = ()
    equation: str = ""

    @property
    def diagonal(self) -> bool:
        """Whether the middle is a vector."""
        return bool(self.middle) and len(self.equation.rpartition("->")[2]) == 1


@lru_cache(maxsize=4096)
def routes(structure: Structure) -> tuple[Route, ...]:
    """Return the route of every network of a sum; empty where one of them is no chain.

    >>> from tnc.net import parse_network
    >>> s = Structure.of(parse_network("U[o r]! s[r] V[r i]! : i -> o | i=8 o=4 r=2"))
    >>> routes(s)[0].middle, routes(s)[0].diagonal
    (('s',), True)
    """
    if structure.stored or structure.padded:
        return ()
    found = [route(term) for term in structure.terms]
    return tuple(one for one in found if one is not None) if None not in found else ()


def route(term: Network) -> Route | None:
    """Return the route through a network; None where it is no chain with undivided legs."""
    equation = term.equation
    undivided = all(len(axis) == 1 for axis in (*equation.inputs, *equation.outputs))
    if len(equation.outputs) != 1 or not undivided or equation.shared:
        return None
    ends = [_end(equation.cores, legs) for legs in (equation.input_indices, equation.outputs[0])]
    if ends[0] is None or ends[1] is None or ends[0][0] == ends[1][0]:
        return None
    (down, down_bond), (up, up_bond) = ends[0], ends[1]
    middle = tuple(core for core in equation.cores if core not in (down, up))
    if any(len(set(core.indices)) < len(core.indices) for core in equation.cores):
        return None
    wanted = (up_bond,) if up_bond == down_bond else (up_bond, down_bond)
    held = {name for core in middle for name in core.indices}
    if (middle and not held >= set(wanted)) or (not middle and len(wanted) > 1):
        return None
    return Route(
        down.name,
        tuple(down.indices.index(n) for n in (down_bond, *equation.input_indices)),
        up.name,
        tuple(up.indices.index(n) for n in (*equation.output_indices, up_bond)),
        tuple(core.name for core in middle),
        _einsum(middle, wanted) if middle else "",
    )


def _end(cores: tuple[Core, ...], legs: tuple[str, ...]) -> tuple[Core, str] | None:
    """Return the only core that has these legs, with its only other index."""
    having = [core for core in cores if set(core.indices) & set(legs)]
    if len(having) != 1 or not set(having[0].indices) >= set(legs):
        return None
    others = [name for name in having[0].indices if name not in legs]
    return (having[0], others[0]) if len(others) == 1 else None


def _einsum(cores: tuple[Core, ...], wanted: tuple[str, ...]) -> str:
    names = sorted({name for core in cores for name in core.indices})
    letter = dict(zip(names, ascii_letters))
    sides = ["".join(letter[name] for name in core.indices) for core in cores]
    return ",".join(sides) + "->" + "".join(letter[name] for name in wanted)
