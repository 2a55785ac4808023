"""A synthetic tensor whose best network is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.errors import SearchError
from tnc.explore import Topology
from tnc.explore.evaluator import Array
from tnc.explore.evaluator import dense as contracted
from tnc.searching.target import Target, targets


@targets.register("ring")
@dataclass(frozen=True)
class Ring(Target):
    """A ring of cores with normal entries: `ranks[k]` joins modes k and k + 1, the last the ends.

    The tensor has norm 1, so that its best network is known: that ring.
    """

    ring: tuple[int, ...]
    ranks: tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.ring) < 3 or len(self.ranks) != len(self.ring):
            raise SearchError(
                f"a ring of {len(self.ring)} modes with {len(self.ranks)} ranks",
                hint="give three modes or more, and as many ranks",
            )
        if min(*self.ring, *self.ranks) < 1 or self.seed < 0:
            raise SearchError(
                f"a ring of modes {self.ring}, ranks {self.ranks}, seed {self.seed}",
                hint="modes and ranks are 1 or more, a seed 0 or more",
            )

    def load(self) -> Array:
        topology = self.topology
        rng = np.random.default_rng(self.seed)
        cores = tuple(rng.standard_normal(shape) for shape in topology.shapes)
        tensor = contracted(cores, topology)
        return np.ascontiguousarray(tensor / np.linalg.norm(tensor))

    @property
    def topology(self) -> Topology:
        """The ring itself."""
        count = len(self.ring)
        bonds = [(k, (k + 1) % count, size) for k, size in enumerate(self.ranks)]
        return Topology.of(self.ring, bonds)
