"""Hierarchical Tucker, and any other tree of cores."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

from tnc.errors import PlanError
from tnc.net import Signature, parse_equation
from tnc.structures.family import Family, families
from tnc.structures.legs import kernel_legs, one_map, split
from tnc.structures.template import Template

_TOKEN = re.compile(r"[()]|[A-Za-z]\w*|\S")


@families.register("hierarchical-tucker")
@dataclass(frozen=True)
class HierarchicalTucker(Family):
    """A core for each node of a tree, a bond for each edge (Hackbusch and Kuehn, 2009).

    `tree` writes a core as parentheses around its legs and its children: `"((o1 i1) (o2 i2))"`,
    `"(((o) (i)) (h w))"`. Legs are o1 o2 .. and i1 i2 .. of `factors` parts a side (bare o and i
    for one part), and kernel modes d, h, w. Convolutions are not folded: factors count as one. A
    node of two children and nothing else at the root joins them by one bond. Without a tree,
    linear weights take a balanced binary one over pairs (o_k i_k); convolutions take
    `((o) (i) (h w))`. Each rank is bounded by the smaller side that its edge parts.
    """

    factors: int = 4
    tree: str = ""
    fit = "tree-svd"

    def refuses(self, signature: Signature) -> str:
        if self.factors < 1:
            return f"factors is {self.factors}, it must be 1 or more"
        reason = one_map(signature)
        if reason:
            return reason
        try:
            self.template(signature)
        except PlanError as error:
            return error.message
        return ""

    def template(self, signature: Signature) -> Template:
        (o,), (i, *_) = signature.outputs, signature.inputs
        taps = kernel_legs(signature)
        parts = 1 if taps else self.factors
        outs, ins = split(o, "o", parts), split(i, "i", parts)
        legs = outs | ins | taps
        root = parse_tree(self.tree or _balanced(list(outs), list(ins), list(taps)))
        named = [leg for node in root.walk() for leg in node.legs]
        wrong = sorted(set(named) ^ set(legs)) or [n for n in named if named.count(n) > 1]
        if wrong:
            raise PlanError(
                f"tree {self.tree!r} must name each leg once; {wrong[0]} is not so",
                hint=f"legs are {' '.join(legs)}",
            )
        cores, bounds = _cores(root, legs)
        if len(cores) < 2:
            raise PlanError(f"tree {self.tree!r} has one core, it needs two or more")
        equation = parse_equation(
            f"{' '.join(cores)} : ({' '.join(ins)}) {' '.join(taps)} -> ({' '.join(outs)})"
        )
        return Template(signature, equation, tuple(legs.items()), tuple(bounds))


@dataclass
class Node:
    """A core: its legs and its children."""

    legs: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)

    def walk(self) -> list[Node]:
        """Return the node and all below it, parents first."""
        return [self, *(node for child in self.children for node in child.walk())]

    def below(self) -> list[str]:
        """Return the legs of the node and of all below it."""
        return [leg for node in self.walk() for leg in node.legs]


def parse_tree(text: str) -> Node:
    """Read a tree. Raises PlanError with the character where it cannot be read.

    >>> parse_tree("((o1 i1) (o2 i2))").children[1].legs
    ['o2', 'i2']
    """
    open_nodes = [Node()]
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word == "(":
            open_nodes.append(Node())
        elif word == ")" and len(open_nodes) > 1:
            node = open_nodes.pop()
            if not node.legs and not node.children:
                raise PlanError(f"tree {text!r} has an empty core at character {token.start() + 1}")
            open_nodes[-1].children.append(node)
        elif word[0].isalpha() and len(open_nodes) > 1:
            open_nodes[-1].legs.append(word)
        else:
            raise PlanError(f"tree {text!r}: unexpected {word!r} at character {token.start() + 1}")
    top = open_nodes[0]
    if len(open_nodes) != 1 or len(top.children) != 1:
        raise PlanError(
            f"tree {text!r} is not one pair of matching parentheses",
            hint="example: ((o1 i1) (o2 i2))",
        )
    return top.children[0]


def _balanced(outs: list[str], ins: list[str], taps: list[str]) -> str:
    if taps:
        return f"(({outs[0]}) ({ins[0]}) ({' '.join(taps)}))"
    if len(outs) == 1:
        return f"(({outs[0]}) ({ins[0]}))"
    nodes = [f"({o} {i})" for o, i in zip(outs, ins)]
    while len(nodes) > 1:
        pairs = [nodes[k : k + 2] for k in range(0, len(nodes), 2)]
        nodes = [f"({' '.join(pair)})" if len(pair) > 1 else pair[0] for pair in pairs]
    return nodes[0]


def _cores(root: Node, legs: dict[str, int]) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the cores in text form and the bounds of their bonds."""
    whole = prod(legs.values())
    joins = not root.legs and len(root.children) == 2
    held: dict[int, list[str]] = {id(node): list(node.legs) for node in root.walk()}
    bounds = []
    for number, (parent, child) in enumerate(_edges(root, joins), 1):
        side = prod(legs[leg] for leg in child.below())
        held[id(parent)].append(f"r{number}")
        held[id(child)].append(f"r{number}")
        bounds.append((f"r{number}", min(side, whole // side)))
    nodes = root.walk()[1:] if joins else root.walk()
    return [f"T{k}[{' '.join(held[id(node)])}]" for k, node in enumerate(nodes, 1)], bounds


def _edges(root: Node, joins: bool) -> list[tuple[Node, Node]]:
    top = [(root.children[0], root.children[1])] if joins else []
    parents = root.walk()[1:] if joins else root.walk()
    return top + [(parent, child) for parent in parents for child in parent.children]
