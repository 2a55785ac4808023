"""A joint fit of cores and of sparse diagonal gates on their bonds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import opt_einsum

from tnc.explore.evaluator import Array, Fit, rse
from tnc.explore.topology import Topology


def gated(
    tensor: Array,
    topology: Topology,
    threshold: float,
    seed: int,
    effort: float = 1.0,
    sweeps: int = 60,
) -> Fit:
    """Fit cores A and a diagonal gate s on every bond in turns, bonds losing what is not needed.

    Minimises `|X / |X| - network(A, s)|^2 / 2 + t sum |A|^2 / 2 + t sum |s|`: cores by least
    squares, gates by coordinate descent with soft thresholds. An index whose gate is 0 is gone for
    good. t rises to `threshold` in the first half of the sweeps; two plain sweeps take away the
    shrinkage. `counts` tells for every bond how many indices are left, as `kept A-B`; they come
    first in the cores, the rest is zeros. Model: Zheng et al., SVDinsTN, CVPR 2024, equation 3.
    """
    state = _State.of(tensor, topology, seed)
    count = max(2, round(sweeps * effort))
    for number in range(count):
        level = threshold * min(1.0, 2 * (number + 1) / count)
        for v in range(len(state.cores)):
            state.sweep(v, level)
    for v in [*range(len(state.cores)), *range(len(state.cores))]:
        state.cores[v] = state.solved(v, state.rest(v), 1e-9)
    cores = state.whole(float(np.linalg.norm(tensor)))
    counts = {"sweeps": float(count + 2), "starts": 1.0}
    for (a, b, _), gates in zip(topology.bonds, state.gates):
        counts[f"kept {a + 1}-{b + 1}"] = float(len(gates))
    return Fit(rse(tensor, cores, topology), cores, counts)


@dataclass
class _State:
    """Cores without gates, and the gates of every bond, of a tensor of norm 1."""

    tensor: Array
    topology: Topology
    cores: list[Array]
    gates: list[Array]

    @classmethod
    def of(cls, tensor: Array, topology: Topology, seed: int) -> _State:
        rng = np.random.default_rng(seed)
        cores = [rng.standard_normal(s) / np.sqrt(prod(s[1:]) or 1) for s in topology.shapes]
        gates = [np.ones(size) for _, _, size in topology.bonds]
        return cls(tensor / (float(np.linalg.norm(tensor)) or 1.0), topology, cores, gates)

    def sweep(self, v: int, level: float) -> None:
        """Solve one core, then the gates of the bonds of which it is the lower end."""
        rest = self.rest(v)
        self.cores[v] = self.solved(v, rest, level)
        for leg, bond in enumerate(self.topology.legs[v]):
            if self.topology.bonds[bond][0] == v:
                terms = self.terms(v, leg, rest) / self.gates[bond][:, None]
                gates = _lasso(terms, self.tensor_at(v).reshape(-1), self.gates[bond], level)
                rest = self.narrow(v, leg, rest, gates)

    def rest(self, v: int) -> Array:
        """Contract all cores but one, with all gates: its legs first, then modes in order."""
        topology, order = self.topology, len(self.topology.modes)
        operands: list[Any] = []
        for other, legs in enumerate(topology.legs):
            if other != v:
                core = self.cores[other]
                for leg, bond in enumerate(legs):
                    if topology.bonds[bond][0] == other or v in topology.bonds[bond][:2]:
                        core = core * _along(core, self.axis(other, leg), self.gates[bond])
                mode = [other] if other < order else []
                operands += [core, [*mode, *(order + k for k in legs)]]
        outer = [order + k for k in topology.legs[v]] + [k for k in range(order) if k != v]
        found: Array = opt_einsum.contract(*operands, outer, optimize="greedy")
        return found

    def solved(self, v: int, rest: Array, level: float) -> Array:
        """Solve the core at `v` against the rest of the network."""
        legs = len(self.topology.legs[v])
        rows = rest.reshape(prod(rest.shape[:legs]), -1)
        gram = rows @ rows.T
        gram[np.diag_indices_from(gram)] += max(level, 1e-12)
        solved: Any = np.linalg.solve(gram, rows @ self.tensor_at(v).T).T
        head = self.topology.modes[v : v + 1] if v < len(self.topology.modes) else ()
        core: Array = solved.reshape(*head, *rest.shape[:legs])
        return core

    def tensor_at(self, v: int) -> Array:
        """Return the tensor with the mode of a core as rows."""
        if v >= len(self.topology.modes):
            return self.tensor.reshape(1, -1)
        return np.moveaxis(self.tensor, v, 0).reshape(self.topology.modes[v], -1)

    def terms(self, v: int, leg: int, rest: Array) -> Array:
        """Return the network at every index of a bond: (indices, entries)."""
        size, legs = rest.shape[leg], len(self.topology.legs[v])
        core = np.moveaxis(self.cores[v], self.axis(v, leg), 0)
        slices = core.reshape(size, -1, prod(rest.shape[:legs]) // size)
        rows = np.moveaxis(rest, leg, 0).reshape(size, slices.shape[2], -1)
        found: Array = (slices @ rows).reshape(size, -1)
        return found

    def narrow(self, v: int, leg: int, rest: Array, gates: Array) -> Array:
        """Take new gates of a bond of `v`, drop its closed ones, and return the rest with both."""
        bond = self.topology.legs[v][leg]
        other = self.topology.bonds[bond][1]
        order = np.argsort(-np.abs(gates), kind="stable")
        kept = order[gates[order] != 0]
        rest = rest * _along(rest, leg, gates / self.gates[bond])
        self.gates[bond] = gates[kept]
        self.cores[v] = np.take(self.cores[v], kept, self.axis(v, leg))
        far = self.axis(other, self.topology.legs[other].index(bond))
        self.cores[other] = np.take(self.cores[other], kept, far)
        left: Array = np.take(rest, kept, leg)
        return left

    def axis(self, v: int, leg: int) -> int:
        """Return the axis of a leg of a core."""
        return leg + (v < len(self.topology.modes))

    def whole(self, norm: float) -> tuple[Array, ...]:
        """Return cores of the topology's shapes with gates and norm inside, closed parts zero."""
        cores = list(self.cores)
        for bond, (a, _, _) in enumerate(self.topology.bonds):
            axis = self.axis(a, self.topology.legs[a].index(bond))
            cores[a] = cores[a] * _along(cores[a], axis, self.gates[bond])
        cores[0] = cores[0] * norm
        return tuple(
            np.pad(core, [(0, want - have) for have, want in zip(core.shape, shape)])
            for core, shape in zip(cores, self.topology.shapes)
        )


def _along(core: Array, axis: int, values: Array) -> Array:
    """Return values shaped to multiply a core along one axis."""
    shape = [1] * core.ndim
    shape[axis] = len(values)
    return values.reshape(shape)


def _lasso(terms: Array, goal: Array, gates: Array, level: float) -> Array:
    """Return gates that minimise `|goal - gates terms|^2 / 2 + level |gates|_1`, one at least."""
    gram, towards = terms @ terms.T, terms @ goal
    found = gates.copy()
    for _ in range(100):
        before = found.copy()
        for i in range(len(found)):
            without = towards[i] - gram[i] @ found + gram[i, i] * found[i]
            shrunk = np.sign(without) * max(abs(without) - level, 0.0)
            found[i] = shrunk / max(gram[i, i], 1e-300)
        if np.abs(found - before).max() <= 1e-6 * max(float(np.abs(found).max()), 1e-300):
            break
    if not found.any():
        first = int(np.abs(gates).argmax())
        found[first] = gates[first]
    return found
