"""Equations of deltas: chains of matrices between the outputs and the inputs of any weight.

Of a stack of experts every expert has a chain of its own: each factor has the leg `e`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from tnc.net import Core, Network, Signature, Structure, parse_network

Factor = tuple[str, str]
"""A core's name, with `!` where it is frozen, and the bonds that it has: `("A!", "r i")`.

Of a sparse core the size that counts its entries follows: `("S#k", "o i")`.
"""


def legs(signature: Signature) -> tuple[dict[str, int], dict[str, int]]:
    """Name the modes of the outputs and of the inputs of a weight, with their sizes.

    >>> legs(Signature((8,), (4, 3, 3)))
    ({'o': 8}, {'i': 4, 'i1': 3, 'i2': 3})

    The first of two output modes counts experts.
    """
    stack = {"e": signature.outputs[0]} if len(signature.outputs) > 1 else {}
    return {**stack, **_named("o", signature.outputs[len(stack) :])}, _named("i", signature.inputs)


def _named(side: str, sizes: Sequence[int]) -> dict[str, int]:
    return {side if k == 0 else f"{side}{k}": size for k, size in enumerate(sizes)}


def chain(signature: Signature, *factors: Factor, **bonds: int) -> Structure:
    """Return the structure of factors whose bonds are given; `o` and `i` stand for all modes.

    >>> str(chain(Signature((8,), (4, 3, 3)), ("B", "o r"), ("A!", "r i"), r=2))
    'B[o r] A[r i i1 i2]! : i i1 i2 -> o | i=4 i1=3 i2=3 o=8 r=2'
    """
    return Structure.of(parse_network(network(signature, *factors, **bonds)), signature=signature)


def network(signature: Signature, *factors: Factor, **bonds: int) -> str:
    """Write such a chain as text, one term of a sum."""
    outputs, inputs = legs(signature)
    whole = {"o": " ".join(leg for leg in outputs if leg != "e"), "i": " ".join(inputs)}
    stack = "e " if "e" in outputs else ""
    cores = []
    for factor, indices in factors:
        name, sparse, count = factor.partition("#")
        frozen = "!" if name.endswith("!") else ""
        named = " ".join(whole.get(index, index) for index in indices.split())
        cores.append(f"{name.rstrip('!')}[{stack}{named}]{frozen}{sparse}{count}")
    sizes = " ".join(f"{name}={size}" for name, size in {**outputs, **inputs, **bonds}.items())
    return f"{' '.join(cores)} : {whole['i']} -> {stack}{whole['o']} | {sizes}"


def with_start(signature: Signature, rank: int) -> Structure:
    """Return `B A + B0 A0` whose second term is frozen: what a delta starts at, negative.

    >>> str(with_start(Signature((8,), (4,)), 2))
    'B[o r] A[r i] : i -> o | i=4 o=8 r=2 + B0[o s]! A0[s i]! : i -> o | i=4 o=8 s=2'
    """
    first = network(signature, ("B", "o r"), ("A", "r i"), r=rank)
    start = network(signature, ("B0!", "o s"), ("A0!", "s i"), s=rank)
    return Structure.of(parse_network(first), parse_network(start), signature=signature)


def most(signature: Signature) -> int:
    """Return the rank above which a low-rank delta gains nothing."""
    return min(signature.outputs[-1], prod(signature.inputs))


def outermost(term: Network) -> str:
    """Return the trained core nearest to the output: of the most output per input entries.

    >>> outermost(parse_network("G1[o1 i1 r] G2[r o2 i2] : (i1 i2) -> (o1 o2) | "
    ...                         "i1=4 i2=2 o1=2 o2=4 r=3"))
    'G2'
    """
    outputs, inputs = set(term.equation.output_indices), set(term.equation.input_indices)

    def ratio(core: Core) -> float:
        size = term.size
        makes = prod(size[name] for name in core.indices if name in outputs)
        reads = prod(size[name] for name in core.indices if name in inputs)
        return makes / reads

    trained = [core for core in term.equation.cores if core.kind == "trainable"]
    return max(trained, key=ratio).name


def spread(term: Network, zero: str, known: Mapping[str, float] | None = None) -> float:
    """Return the deviation of the drawn cores beside one of zeros, by which a delta starts.

    What the zero core is applied to is a sum of products of inputs and of one entry of each other
    core, over all indices that it does not carry itself; it gets a third of the variance of the
    inputs, as B in LoRA. `known` are mean squares of cores that are not drawn.
    """
    equation = term.equation
    held = {*equation.core(zero).indices, *equation.output_indices}
    known = known or {}
    others = [core for core in equation.cores if core.name != zero and core.name not in known]
    summed = prod(term.size[name] for name in equation.indices if name not in held)
    density = prod(term.density(core) for core in others)
    given = prod(
        square for name, square in known.items() if not set(equation.core(name).indices) & held
    )
    return float((3 * summed * density * given) ** (-0.5 / max(1, len(others))))
