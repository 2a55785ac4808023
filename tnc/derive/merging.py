"""Two linear maps with nothing between them as one, without losing the structure that pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from tnc.derive.cost import Work, cost
from tnc.derive.dense import copy_of
from tnc.derive.halves import halves
from tnc.net import Axis, Core, Equation, Network, Signature, Structure


@dataclass(frozen=True)
class Merged:
    """The product of two structures: cores that one of them keeps, and one new core.

    `keeps` is 'first' (its `cores` that meet the input), 'second' (its `cores` that make the
    output) or 'neither'. The new core `name` holds the rest as a matrix: of the whole product, of
    what comes after the kept cores (outputs, open indices), or before them (open indices, inputs).
    """

    structure: Structure
    keeps: str
    cores: tuple[str, ...]
    name: str


def merged(first: Structure, second: Structure, rows: int) -> Merged | None:
    """Return the cheapest product of two structures for `rows` vectors.

    None where all have more parameters or more FLOPs than the two layers, one after the other.

    >>> from tnc.net import parse_network
    >>> a = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=16 o=16 r=2"))
    >>> b = Structure.of(parse_network("B[o r] A[r i] : i -> o | i=16 o=16 r=3"))
    >>> found = merged(a, b, 128)
    >>> print(found.structure, found.keeps, found.cores)
    A[r i] M[o r] : i -> o | i=16 o=16 r=2 first ('A',)
    """
    work = Work("linear", rows)
    before = [cost(structure, work) for structure in (first, second)]
    params, flops = sum(c.params for c in before), sum(c.flops for c in before)
    best: tuple[int, int] | None = None
    chosen = None
    for candidate in _candidates(first, second):
        found = cost(candidate.structure, work)
        if found.params > params or found.flops > flops:
            continue
        if best is None or (found.flops, found.params) < best:
            best, chosen = (found.flops, found.params), candidate
    return chosen


def _candidates(first: Structure, second: Structure) -> Iterator[Merged]:
    outputs, inputs = second.signature.outputs, first.signature.inputs
    sizes = {"o": outputs[0], "i": inputs[0]}
    whole = Equation((Core("W", ("o", "i")),), (("i",),), (("o",),))
    yield Merged(Structure.of(Network.of(whole, sizes)), "neither", (), "W")
    for cores in _subsets(first):
        split = halves(first, frozenset(cores))
        if split is not None:
            yield _after(split[0].terms[0], Signature(outputs, inputs), cores)
    for cores in _subsets(second):
        split = halves(second, frozenset(second.shapes) - set(cores))
        if split is not None:
            yield _before(split[1].terms[0], Signature(outputs, inputs), cores)


def _subsets(structure: Structure) -> Iterator[tuple[str, ...]]:
    names = sorted(structure.shapes)
    for size in range(1, len(names)):
        yield from combinations(names, size)


def _after(front: Network, signature: Signature, cores: tuple[str, ...]) -> Merged:
    """Keep the front of the first; one core follows it."""
    equation = front.equation
    leg, name = _fresh("o", front), _core(equation)
    new = Core(name, (leg, *equation.output_indices))
    made = Equation((*equation.cores, new), equation.inputs, ((leg,),))
    return _as_merged(made, front, {leg: signature.outputs[0]}, signature, "first", cores, name)


def _before(back: Network, signature: Signature, cores: tuple[str, ...]) -> Merged:
    """Keep the back of the second; one core comes before it."""
    equation = back.equation
    leg, name = _fresh("i", back), _core(equation)
    new = Core(name, (*equation.input_indices, leg))
    made = Equation((*equation.cores, new), ((leg,),), equation.outputs)
    return _as_merged(made, back, {leg: signature.inputs[0]}, signature, "second", cores, name)


def _as_merged(
    equation: Equation,
    network: Network,
    leg: dict[str, int],
    signature: Signature,
    keeps: str,
    cores: tuple[str, ...],
    name: str,
) -> Merged:
    sizes = {n: leg[n] if n in leg else network.size[n] for n in equation.names}
    return Merged(Structure(signature, (Network.of(equation, sizes),)), keeps, cores, name)


def _fresh(name: str, network: Network) -> str:
    return name if name not in network.size else copy_of(name, network)


def _core(equation: Equation) -> str:
    taken: Axis = tuple(core.name for core in equation.cores)
    return next(name for name in ("M", "N", *(f"M{k}" for k in range(9))) if name not in taken)
