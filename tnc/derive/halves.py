"""Halves of a network: the cores that meet the input, and what comes after them.

Layers that read one tensor and hold some cores in common compute the work of those cores once.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from itertools import combinations

from tnc.derive.cost import Work, cost
from tnc.net import Equation, Network, Signature, Structure

Halves = tuple[Structure, Structure]
"""The front, from the inputs to the open indices, and the back, from those to the outputs."""


@lru_cache(maxsize=4096)
def halves(structure: Structure, front: frozenset[str]) -> Halves | None:
    """Split a network at some of its cores; None where nothing or everything would be in front.

    `back(front(x)) = W x`. An index is open where it reaches over to the other side. Only for one
    network, not for sums.

    >>> from tnc.net import Structure, parse_network
    >>> s = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2"))
    >>> for half in halves(s, frozenset({"A"})): print(half)
    A[r i] : i -> r | i=8 r=2
    B[o r] : r -> o | o=4 r=2
    """
    if len(structure.terms) != 1:
        return None
    (term,) = structure.terms
    equation = term.equation
    first = tuple(core for core in equation.cores if core.name in front)
    rest = tuple(core for core in equation.cores if core.name not in front)
    if not first or not rest:
        return None
    before = {name for core in first for name in core.indices} | set(equation.input_indices)
    after = {name for core in rest for name in core.indices} | set(equation.output_indices)
    open_ = tuple(name for name in equation.indices if name in before and name in after)
    if not open_:
        return None
    head = Equation(first, equation.inputs, (open_,))
    tail = Equation(rest, (open_,), equation.outputs)
    made = tuple(Network.of(e, {n: term.size[n] for n in e.names}) for e in (head, tail))
    width = made[0].signature.outputs
    return (
        Structure(Signature(width, structure.signature.inputs), made[:1]),
        Structure(Signature(structure.signature.outputs, width), made[1:]),
    )


def common_front(
    structures: Collection[Structure], shared: Collection[str], rows: int
) -> tuple[str, ...]:
    """Choose which of the shared cores are in front; empty where sharing saves no FLOPs.

    `structures` are those of the layers, which hold the cores `shared` in common. The FLOPs are
    those of `rows` vectors: of the front, once, and of all backs, against those of whole layers.

    >>> from tnc.net import Structure, parse_network
    >>> q = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=4 r=2"))
    >>> k = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=8 o=8 r=2"))
    >>> common_front((q, k), ("A",), 16)
    ('A',)
    """
    work = Work("linear", rows)
    names = sorted(shared)
    best = sum(cost(structure, work).flops for structure in structures)
    chosen: tuple[str, ...] = ()
    subsets = (s for size in range(1, len(names) + 1) for s in combinations(names, size))
    for subset in subsets:
        split = [halves(structure, frozenset(subset)) for structure in structures]
        made = [pair for pair in split if pair is not None]
        if len(made) < len(split) or len({front for front, _ in made}) > 1:
            continue
        flops = cost(made[0][0], work).flops + sum(cost(back, work).flops for _, back in made)
        if flops < best:
            best, chosen = flops, subset
    return chosen
