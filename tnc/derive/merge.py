"""Merging cores ahead of time: a network of the same weight with fewer cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tnc.derive.contraction import Contraction
from tnc.net import Core, Equation, Network

Groups = tuple[tuple[str, ...], ...]
"""The names of all cores, in the groups that become one core each."""


@dataclass(frozen=True)
class Merged:
    """A network with fewer cores, and what each merged core is: its name and a contraction."""

    network: Network
    made: tuple[tuple[str, Contraction], ...]

    @property
    def flops(self) -> int:
        """FLOPs of making the merged cores."""
        return sum(contraction.order.flops for _, contraction in self.made)


def merged(network: Network, groups: Groups) -> Merged:
    """Contract every group of cores into one, which takes the name of the group's first.

    An index that only a group carries is summed. A merged core is dense.

    >>> from tnc.net import parse_network
    >>> cp = parse_network("O[o r] I[i r] H[h r] W[w r] : i h w -> o | i=4 h=3 w=3 o=5 r=2")
    >>> str(merged(cp, (("O",), ("I",), ("H", "W"))).network.equation)
    'O[o r] I[i r] H[h r w] : i h w -> o'
    """
    equation = network.equation
    cores: list[Core] = []
    made: list[tuple[str, Contraction]] = []
    for group in groups:
        if len(group) == 1:
            cores.append(equation.core(group[0]))
            continue
        inside = [equation.core(name) for name in group]
        needed = {*equation.input_indices, *equation.output_indices}.union(
            *(core.indices for core in equation.cores if core.name not in group)
        )
        every = dict.fromkeys(name for core in inside for name in core.indices)
        kept = tuple(name for name in every if name in needed)
        cores.append(Core(group[0], kept))
        sizes = tuple((name, network.size[name]) for name in sorted(every))
        operands = tuple(core.indices for core in inside)
        made.append((group[0], Contraction(group, operands, kept, sizes)))
    found = Equation(tuple(cores), equation.inputs, equation.outputs)
    return Merged(Network.of(found, {n: network.size[n] for n in found.names}), tuple(made))


def partitions(network: Network) -> Iterator[Groups]:
    """Yield every way to put the cores into groups of which each hangs together."""
    cores = network.equation.cores

    def ways(rest: tuple[Core, ...]) -> Iterator[tuple[tuple[Core, ...], ...]]:
        if not rest:
            yield ()
            return
        for smaller in ways(rest[1:]):
            yield ((rest[0],), *smaller)
            for place, group in enumerate(smaller):
                yield (*smaller[:place], (rest[0], *group), *smaller[place + 1 :])

    for found in ways(cores):
        if all(map(hangs_together, found)):
            yield tuple(tuple(core.name for core in group) for group in found)


def hangs_together(group: tuple[Core, ...]) -> bool:
    """Whether cores are connected by indices."""
    reached, rest = set(group[0].indices), list(group[1:])
    while rest:
        near = [core for core in rest if reached & set(core.indices)]
        if not near:
            return False
        for core in near:
            reached |= set(core.indices)
            rest.remove(core)
    return True
