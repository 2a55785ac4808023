"""Members of a stack: the structure of one weight out of several that were fitted as one tensor.

Weights of one shape stack to a tensor whose first output mode counts them. A structure of that
tensor gives every weight a structure of its own: the cores that carry the counting index are cut
at its place, all others are shared by every member.
"""

from __future__ import annotations

from dataclasses import replace

from tnc.errors import EquationError
from tnc.net import Network, Signature, Structure

Cut = tuple[tuple[str, int | slice], ...]
"""Where a core is cut: (index, place) for each of its counting indices."""


def member(structure: Structure, number: int) -> tuple[Structure, dict[str, Cut]]:
    """Return the structure of weight `number` of a stack, and where each own core is cut.

    Cores that are not named are shared. Raises EquationError where the first output mode is the
    only one, where it is an input leg too, or where nothing would be left of a network.

    >>> from tnc.net import Structure, parse_network
    >>> stack = Structure.of(parse_network("B[l o r] A[r i] : i -> l o | i=8 l=3 o=4 r=2"))
    >>> own, cuts = member(stack, 2)
    >>> str(own), cuts
    ('B[o r] A[r i] : i -> o | i=8 o=4 r=2', {'B': (('l', 2),)})
    """
    if len(structure.signature.outputs) < 2:
        raise EquationError("a stack has two output modes or more", where=f"structure {structure}")
    cuts: dict[str, Cut] = {}
    terms = []
    for term in structure.terms:
        places = _digits(term, number)
        terms.append(_cut(term, places))
        for core in term.equation.cores:
            held = tuple((name, places[name]) for name in core.indices if name in places)
            if held:
                cuts[core.name] = held
    signature = Signature(structure.signature.outputs[1:], structure.signature.inputs)
    return Structure(signature, tuple(terms)), cuts


def _digits(term: Network, number: int) -> dict[str, int]:
    """Split a place in the stack into one for each index of its axis, last index fastest."""
    found = {}
    for name in reversed(term.equation.outputs[0]):
        found[name] = number % term.size[name]
        number //= term.size[name]
    return found


def _cut(term: Network, places: dict[str, int]) -> Network:
    equation = term.equation
    sparse = [core.name for core in equation.cores if core.stored and set(places) & {*core.indices}]
    if sparse:
        raise EquationError(
            f"core {sparse[0]} stores some of its entries and cannot be cut",
            where=f"network {term}",
            hint="give the sparse core no counting index, or fit the weights one by one",
        )
    if set(places) & set(equation.input_indices):
        raise EquationError("the counting index is an input leg too", where=f"network {term}")
    cores = tuple(
        replace(core, indices=tuple(n for n in core.indices if n not in places))
        for core in equation.cores
    )
    made = replace(equation, cores=cores, outputs=equation.outputs[1:])
    return Network.of(made, {name: term.size[name] for name in made.indices})
