"""What is drawn of a network: cores and dots, wires between two of them, open legs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log2
from typing import Any

from tnc.net import Network


@dataclass(frozen=True)
class Wire:
    """An index between two nodes."""

    index: str
    size: int
    ends: tuple[str, str]


@dataclass(frozen=True)
class Leg:
    """An open end at a node; `way` is `out`, `in`, or empty where the network is no map."""

    index: str
    size: int
    node: str
    way: str


@dataclass(frozen=True)
class Sketch:
    """A network as a graph. An index of three ends or more, legs counted, is a node: a dot."""

    cores: tuple[str, ...]
    dots: tuple[str, ...]
    wires: tuple[Wire, ...]
    legs: tuple[Leg, ...]

    @classmethod
    def of(cls, network: Network) -> Sketch:
        """Draw up a network."""
        equation = network.equation
        dots, wires, legs = [], [], []
        for index in equation.indices:
            size = network.size[index]
            nodes = [core.name for core in equation.cores if index in core.indices]
            ways = [
                way if equation.inputs else ""
                for way, names in (
                    ("out", equation.output_indices),
                    ("in", equation.input_indices),
                )
                if index in names
            ]
            if len(nodes) == 2 and not ways:
                wires.append(Wire(index, size, (nodes[0], nodes[1])))
            elif len(nodes) == 1 and len(ways) == 1:
                legs.append(Leg(index, size, nodes[0], ways[0]))
            else:
                dot = f"·{index}"
                dots.append(dot)
                wires += [Wire(index, size, (node, dot)) for node in nodes]
                legs += [Leg(index, size, dot, way) for way in ways]
        return cls(
            tuple(core.name for core in equation.cores), tuple(dots), tuple(wires), tuple(legs)
        )

    @cached_property
    def graph(self) -> Any:
        """The networkx graph of cores and dots, heavier edges for wider bonds."""
        import networkx

        graph = networkx.Graph()
        graph.add_nodes_from((*self.cores, *self.dots))
        for wire in self.wires:
            held = graph.get_edge_data(*wire.ends, {"weight": 0.0})["weight"]
            graph.add_edge(*wire.ends, weight=held + thickness(wire.size))
        return graph


def thickness(size: int) -> float:
    """Return how thick the line of an index is: by the logarithm of its size.

    >>> thickness(1), thickness(4), thickness(10**9)
    (1.2, 3.0, 9.0)
    """
    return min(1.2 + 0.9 * log2(size), 9.0)
