"""One tensor and one topology, laid out for the compiled loops."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tnc.explore.alternating import plan, sweeps
from tnc.explore.carrying import turned
from tnc.explore.evaluator import Array, Fit
from tnc.explore.topology import Topology

MOST = 1 << 28
"""Numbers in the memory of a fit: 2 GiB of float64."""
EXACT = 1e-13
"""A squared relative error that rounding hides."""


def trivial(tensor: Array, topology: Topology) -> Fit | None:
    """Return the fit of what needs none: a tensor of zeros, or a single core."""
    if len(topology.shapes) == 1:
        return Fit(0.0, (np.array(tensor),), {"starts": 1})
    if not tensor.any():
        return Fit(0.0, tuple(np.zeros(shape) for shape in topology.shapes), {"starts": 1})
    return None


@dataclass(frozen=True)
class Bench:
    """The plan of a topology with the memory that it works in."""

    topology: Topology
    norm: float
    room: Array
    plan: tuple[Any, ...]

    @classmethod
    def of(cls, tensor: Array, topology: Topology, dtype: str = "float64") -> Bench:
        """Plan and lay out. Raises MemoryError where a sweep needs more than `MOST` numbers."""
        modes = np.array([*topology.modes, *[1] * topology.hidden], dtype=np.int64)
        bonds = np.array(topology.bonds, dtype=np.int64).reshape(-1, 3)
        made = plan.plan(modes, bonds, MOST)
        marks, order = made[2], made[3]
        if marks[3] > MOST:
            raise MemoryError(f"{topology} needs {marks[3] / 2**27:.1f} GiB to be fitted")
        room = np.zeros(marks[3], dtype=dtype)
        room[: tensor.size] = tensor.transpose(order[order < tensor.ndim]).reshape(-1)
        return cls(topology, float(np.square(tensor).sum()), room, made)

    @property
    def work(self) -> int:
        """The multiply-adds of a sweep."""
        return int(self.plan[2][5])

    def starts(
        self, count: int, seed: int, start: tuple[Array, ...] | None, scale: float = 1.0
    ) -> list[Array]:
        """Return `count` vectors of random cores, after the given ones if there are any."""
        rng = np.random.default_rng(seed)
        size = self.topology.parameters
        drawn = [scale * rng.standard_normal(size) for _ in range(count)]
        if start is not None:
            drawn.insert(0, np.concatenate([core.reshape(-1) for core in start]))
        return [cores.astype(self.room.dtype) for cores in drawn]

    def descend(
        self,
        cores: Array,
        most: int,
        anneal: int,
        stir: float,
        enough: float,
        gain: float,
        reach: float,
    ) -> int:
        """Sweep `most` times or to `enough`; leave the best in `cores`, return the sweeps made."""
        steps, tables, marks, order, places = self.plan
        _, made = sweeps.descend(
            self.room, steps, tables, marks, order, places, self.norm, cores,
            most, anneal, stir, max(enough, EXACT), gain, reach,
        )  # fmt: skip
        return int(made)

    def level(self, flat: Array) -> None:
        """Turn the bonds of the cores in a vector so that both their ends weigh the same."""
        if np.isfinite(flat).all():
            parts = turned(self.cores(flat), self.topology)
            flat[:] = np.concatenate([core.reshape(-1) for core in parts])

    def follow(
        self, goal: Array, cores: Array, most: int, enough: float, rate: float
    ) -> tuple[float, int]:
        """Make `most` steps of Adam or as many as lead to `enough`; leave the best in `cores`."""
        steps, tables, marks, order, places = self.plan
        error, made = sweeps.follow(
            self.room, goal, steps, tables, marks, order, places, self.norm, cores,
            most, rate, enough,
        )  # fmt: skip
        return float(error), int(made)

    def rse(self, cores: Array) -> float:
        """Return the squared relative error of what cores rebuild."""
        steps, tables, marks, order, places = self.plan
        room, scratch = self.room, marks[4]
        room[places[0] : places[-1]] = cores
        for first, last in ((sweeps.BEGIN, marks[0]), (marks[1], marks[2])):
            sweeps.perform(
                room, steps, tables, first, last, sweeps.UP, scratch, self.norm, order, places,
                0.0,
            )  # fmt: skip
        size, at = self.topology.dense, steps[-1, 1]
        gap = room[:size] - room[at : at + size]
        found = float(gap @ gap) / self.norm
        return found if found == found else float("inf")

    def cores(self, flat: Array) -> tuple[Array, ...]:
        """Return the cores that a vector holds, in float64."""
        ends = np.cumsum([prod(shape) for shape in self.topology.shapes])[:-1]
        parts = zip(np.split(np.asarray(flat, dtype=np.float64), ends), self.topology.shapes)
        return tuple(part.reshape(shape) for part, shape in parts)
