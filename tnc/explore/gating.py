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
    sweeps: int = 40,
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
        state.cores[v] = state.view(v).solved(1e-9, topology.modes[v : v + 1])
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
        state = cls(tensor / (float(np.linalg.norm(tensor)) or 1.0), topology, cores, gates)
        state.begin()
        return state

    def begin(self, sweeps: int = 3) -> None:
        """Come near the tensor by plain sweeps, and give all cores the same norm.

        Penalties close all gates of a network that is far from the tensor or out of balance.
        """
        for v in [*range(len(self.cores))] * sweeps:
            core = self.view(v).solved(1e-9, self.topology.modes[v : v + 1])
            size = float(np.linalg.norm(core))
            self.cores[v] = core / (size or 1.0)
        for v in range(len(self.cores)):
            self.cores[v] = self.cores[v] * size ** (1 / len(self.cores))

    def sweep(self, v: int, level: float) -> None:
        """Solve one core, then the gates of the bonds of which it is the lower end."""
        view = self.view(v)
        self.cores[v] = view.solved(level, self.topology.modes[v : v + 1])
        for leg, bond in enumerate(self.topology.legs[v]):
            if self.topology.bonds[bond][0] == v:
                gram, towards = view.terms(self.cores[v], leg)
                old = self.gates[bond]
                gates = _lasso(gram / np.outer(old, old), towards / old, old, level)
                view = view.rescaled(leg, gates / old, self.narrow(v, leg, gates))

    def view(self, v: int) -> _View:
        """Return all that a core sees of the rest of the network and the tensor."""
        legs = len(self.topology.legs[v])
        rest = self.rest(v)
        rows = rest.reshape(prod(rest.shape[:legs]), -1)
        sizes = rest.shape[:legs]
        goal = self.tensor_at(v) @ rows.T
        return _View((rows @ rows.T).reshape((*sizes, *sizes)), goal.reshape((-1, *sizes)))

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

    def tensor_at(self, v: int) -> Array:
        """Return the tensor with the mode of a core as rows."""
        if v >= len(self.topology.modes):
            return self.tensor.reshape(1, -1)
        return np.moveaxis(self.tensor, v, 0).reshape(self.topology.modes[v], -1)

    def narrow(self, v: int, leg: int, gates: Array) -> Any:
        """Take new gates of a bond of `v`, drop its closed ones, and return which are left."""
        bond = self.topology.legs[v][leg]
        other = self.topology.bonds[bond][1]
        order = np.argsort(-np.abs(gates), kind="stable")
        kept = order[gates[order] != 0]
        self.gates[bond] = gates[kept]
        self.cores[v] = np.take(self.cores[v], kept, self.axis(v, leg))
        far = self.axis(other, self.topology.legs[other].index(bond))
        self.cores[other] = np.take(self.cores[other], kept, far)
        return kept

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


@dataclass
class _View:
    """Products of the rest of a network, legs by legs, and of the tensor with it, mode by legs."""

    gram: Array
    goal: Array

    def solved(self, level: float, head: tuple[int, ...]) -> Array:
        """Return the core that is least in `|tensor - core rest|^2 + level |core|^2`."""
        sizes = self.goal.shape[1:]
        gram = self.gram.reshape(prod(sizes), prod(sizes)).copy()
        gram[np.diag_indices_from(gram)] += max(level, 1e-12)
        solved: Any = np.linalg.solve(gram, self.goal.reshape(-1, prod(sizes)).T).T
        core: Array = solved.reshape((*head, *sizes))
        return core

    def terms(self, core: Array, leg: int) -> tuple[Array, Array]:
        """Return products of the terms at every index of a leg, and theirs with the tensor."""
        legs = self.goal.ndim - 1
        size = self.goal.shape[leg + 1]
        held = core.reshape(self.goal.shape)
        slices = np.moveaxis(held, leg + 1, 1).reshape(len(held), -1)
        towards = (held * self.goal).sum(axis=tuple(k for k in range(legs + 1) if k != leg + 1))
        gram = np.moveaxis(self.gram, (leg, legs + leg), (0, legs)).reshape(slices.shape[1], -1)
        both = (gram * (slices.T @ slices)).reshape(size, -1, size, slices.shape[1] // size)
        return both.sum(axis=(1, 3)), towards

    def rescaled(self, leg: int, factors: Array, kept: Any) -> _View:
        """Return the view with a bond's indices scaled, and only these of them."""
        legs = self.goal.ndim - 1
        gram = self.gram * _along(self.gram, leg, factors) * _along(self.gram, legs + leg, factors)
        goal = self.goal * _along(self.goal, leg + 1, factors)
        return _View(
            np.take(np.take(gram, kept, leg), kept, legs + leg), np.take(goal, kept, leg + 1)
        )


def _along(core: Array, axis: int, values: Array) -> Array:
    """Return values shaped to multiply a core along one axis."""
    shape = [1] * core.ndim
    shape[axis] = len(values)
    return values.reshape(shape)


def _lasso(gram: Array, towards: Array, gates: Array, level: float) -> Array:
    """Return gates that minimise `|tensor - gates terms|^2 / 2 + level |gates|_1`, one at least.

    `gram` holds the products of the terms and `towards` those with the tensor.
    """
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
