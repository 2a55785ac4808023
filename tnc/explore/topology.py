"""Topologies: which cores of a tensor network share a bond, and of what size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import permutations
from math import factorial, prod
from typing import Any

from tnc.errors import SearchError
from tnc.net import Axis, Core, Equation, Network

Bond = tuple[int, int, int]
"""Two vertices, the lower first, and the size of the bond between them."""
_MOST_RELABELLINGS = factorial(6)
_TEXT = re.compile(r"(\d+(?:x\d+)*)(?: \+(\d+))?(?: no bonds)?((?: \d+-\d+:\d+)*)")


@dataclass(frozen=True)
class Topology:
    """A tensor network as a graph: vertex k < len(modes) holds mode k, the others hold none.

    Built by `of`, which removes what is no difference (the gauge): a bond of size 1 is no bond,
    two bonds between the same vertices are one of their product, a bond is never wider than all
    other legs of one of its ends, a vertex without a mode and with fewer than three bonds is
    multiplied into a neighbour, and vertices without modes have no names. A rotated or reflected
    ring is the same topology, since modes name the vertices.

    >>> ring = Topology.of((3, 3, 3), [(0, 1, 2), (1, 2, 2), (0, 2, 2)])
    >>> ring == Topology.of((3, 3, 3), [(2, 1, 2), (2, 0, 2), (1, 0, 2)])
    True
    >>> ring.parameters
    36
    """

    modes: tuple[int, ...]
    bonds: tuple[Bond, ...]
    hidden: int = 0

    @classmethod
    def of(cls, modes: Iterable[int], bonds: Iterable[Bond], hidden: int = 0) -> Topology:
        """Build the canonical form. Raises SearchError for bonds that join no two vertices."""
        modes = tuple(modes)
        count = len(modes) + hidden
        joined: dict[tuple[int, int], int] = {}
        for a, b, size in bonds:
            if a == b or not (0 <= a < count and 0 <= b < count) or size < 1:
                raise SearchError(
                    f"bond {a}-{b} of size {size} does not join two of {count} vertices",
                    hint="vertices count from 0, modes first; sizes are at least 1",
                )
            pair = (min(a, b), max(a, b))
            joined[pair] = joined.get(pair, 1) * size
        joined = {pair: size for pair, size in joined.items() if size > 1}
        while _narrow(modes, joined) or _absorb(len(modes), joined):
            pass
        inner = sorted({v for pair in joined for v in pair if v >= len(modes)})
        return cls(modes, _canonical(len(modes), joined, inner), len(inner))

    @cached_property
    def parameters(self) -> int:
        """The number of entries of all cores."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def dense(self) -> int:
        """The number of entries of the tensor."""
        return prod(self.modes)

    @property
    def ratio(self) -> float:
        """Parameters over entries of the tensor: the papers' inverse compression ratio."""
        return self.parameters / self.dense

    @cached_property
    def legs(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the bonds at every vertex, ascending."""
        return tuple(
            tuple(k for k, (a, b, _) in enumerate(self.bonds) if v in (a, b))
            for v in range(len(self.modes) + self.hidden)
        )

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every core: its mode first where it has one, then its bonds."""
        return tuple(
            (self.modes[v : v + 1] if v < len(self.modes) else ())
            + tuple(self.bonds[k][2] for k in legs)
            for v, legs in enumerate(self.legs)
        )

    @cached_property
    def key(self) -> str:
        """A digest of the canonical form."""
        return sha256(str(self).encode()).hexdigest()[:32]

    def __str__(self) -> str:
        told = " ".join(f"{a}-{b}:{size}" for a, b, size in self.bonds) or "no bonds"
        return f"{'x'.join(map(str, self.modes))}{f' +{self.hidden}' * bool(self.hidden)} {told}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read the text form, `MODESx.. [+HIDDEN] A-B:SIZE ..`. Raises SearchError.

        >>> str(Topology.parse("3x3x3 0-1:2 1-2:2"))
        '3x3x3 0-1:2 1-2:2'
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise SearchError(
                f"{text!r} is no topology", hint="example: '3x4x5 0-1:2 1-2:3', bonds as A-B:SIZE"
            )
        bonds = [tuple(map(int, re.split("[-:]", bond))) for bond in match[3].split()]
        modes = tuple(map(int, match[1].split("x")))
        if min(modes) < 1:
            raise SearchError(f"{text!r} has a mode of size 0", hint="modes are 1 or more")
        return cls.of(modes, [(a, b, size) for a, b, size in bonds], int(match[2] or 0))

    def network(self, prefix: str = "G") -> Network:
        """Return the network: legs `m1 ..` are its modes, all of them outputs."""
        names = [f"m{k + 1}" for k in range(len(self.modes))]
        cores = tuple(
            Core(
                f"{prefix}{v + 1}",
                (
                    *names[v : v + 1],
                    *(f"r{self.bonds[k][0] + 1}_{self.bonds[k][1] + 1}" for k in legs),
                ),
            )
            for v, legs in enumerate(self.legs)
        )
        equation = Equation(cores, (), tuple(Axis((name,)) for name in names))
        sizes = dict(zip(names, self.modes)) | {
            f"r{a + 1}_{b + 1}": size for a, b, size in self.bonds
        }
        return Network.of(equation, sizes)

    def to_json(self) -> dict[str, Any]:
        """Write as plain data; `from_json` reads it back."""
        return {
            "modes": list(self.modes),
            "bonds": [list(bond) for bond in self.bonds],
            "hidden": self.hidden,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Topology:
        """Read what `to_json` wrote."""
        bonds = [(a, b, size) for a, b, size in data["bonds"]]
        return cls.of(data["modes"], bonds, data.get("hidden", 0))


def narrowed(
    modes: tuple[int, ...], joined: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], int]:
    """Return bonds by their ends without what is wider than the other legs of an end allow.

    A core whose leg is wider than its other legs together is a product of a core with a narrower
    one and a matrix, which the neighbour takes in, so nothing is lost.
    """
    held = {pair: size for pair, size in joined.items() if size > 1}
    while _narrow(modes, held):
        pass
    return held


def _narrow(modes: tuple[int, ...], joined: dict[tuple[int, int], int]) -> bool:
    """Cut one bond that is wider than the other legs of an end allow; say whether one was."""
    for pair in sorted(joined):
        for end in pair:
            others = [size for other, size in joined.items() if other != pair and end in other]
            most = prod(others) * (modes[end] if end < len(modes) else 1)
            if joined[pair] > most:
                joined[pair] = most
                if most == 1:
                    del joined[pair]
                return True
    return False


def _absorb(modes: int, joined: dict[tuple[int, int], int]) -> bool:
    """Multiply one vertex without a mode and with two bonds into a neighbour, if there is one."""
    for v in sorted({v for pair in joined for v in pair if v >= modes}):
        pairs = sorted(pair for pair in joined if v in pair)
        if len(pairs) != 2:
            continue
        (a, b), size = sorted((set(p) - {v}).pop() for p in pairs), min(joined[p] for p in pairs)
        for pair in pairs:
            del joined[pair]
        joined[a, b] = joined.get((a, b), 1) * size
        return True
    return False


def _canonical(
    modes: int, joined: Mapping[tuple[int, int], int], inner: list[int]
) -> tuple[Bond, ...]:
    """Return the bonds with the least of all numberings of the vertices without modes."""
    if factorial(len(inner)) > _MOST_RELABELLINGS:
        raise SearchError(
            f"{len(inner)} vertices without modes are too many to compare topologies",
            hint="at most 6 of them",
        )
    forms: list[tuple[Bond, ...]] = []
    for order in permutations(range(modes, modes + len(inner))):
        place = dict(zip(inner, order))
        moved = [(place.get(a, a), place.get(b, b), size) for (a, b), size in joined.items()]
        forms.append(tuple(sorted((min(a, b), max(a, b), size) for a, b, size in moved)))
    return min(forms)
