"""All cores at once: Levenberg and Marquardt's steps, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import opt_einsum

from tnc.explore.evaluator import Array, Evaluator, Fit, evaluators, rse
from tnc.explore.topology import Topology

Parts = list[Array]
"""One matrix for every core: its mode, or 1, by the product of its bonds."""


@evaluators.register("gauss-newton")
@dataclass(frozen=True)
class GaussNewton(Evaluator):
    """Gauss-Newton steps with damping, from annealed alternating sweeps; the best of `starts`.

    Fast at the end, where alternating sweeps creep: near an exact fit errors square with every
    step. A step minimises the error linearised in all cores by at most `products` conjugate
    gradients, preconditioned by the normal equations of single cores; it is never formed, so size
    is no matter. A start ends after `steps` or when five of them gain less than `gain` of the
    error. `effort` below 1 takes that share of starts, sweeps and steps.
    """

    starts: int = 2
    sweeps: int = 25
    steps: int = 50
    products: int = 30
    gain: float = 1e-4

    def warm(self) -> None:
        self.fit(np.eye(2), Topology.of((2, 2), [(0, 1, 2)]), seed=0, effort=1e-9)

    def fit(
        self,
        tensor: Array,
        topology: Topology,
        *,
        seed: int,
        effort: float = 1.0,
        start: tuple[Array, ...] | None = None,
        enough: float = 0.0,
    ) -> Fit:
        from tnc.explore.alternating.bench import EXACT, Bench, trivial

        known = trivial(tensor, topology)
        if known is not None:
            return known
        bench = Bench.of(tensor, topology)
        drawn = bench.starts(max(round(effort * self.starts), int(start is None)), seed, start)
        enough = max(enough, EXACT)
        sweeps, most = (max(1, round(effort * count)) for count in (self.sweeps, self.steps))
        model = _Model(tensor, topology)
        best, least, swept, steps = bench.cores(drawn[0]), np.inf, 0, 0
        for k, flat in enumerate(drawn):
            if start is None or k > 0:
                swept += bench.descend(flat, 2 * sweeps, sweeps, 1e-2, enough, 0.0, 1.0)
            parts, made = self._descend(model, _level(model.parts(bench.cores(flat))), most, enough)
            steps += made
            cores = model.cores(parts)
            error = rse(tensor, cores, topology)
            if error < least:
                best, least = cores, error
            if least <= enough:
                break
        counts = {"sweeps": swept, "steps": steps, "starts": len(drawn)}
        return Fit(least, best, {name: float(count) for name, count in counts.items()})

    def _descend(self, model: _Model, parts: Parts, most: int, enough: float) -> tuple[Parts, int]:
        """Return better parts and the steps that it took, refused ones included."""
        damping, errors = 1e-2, list[float]()
        around = model.around(parts)
        gap = model.gap(parts, around)
        error = _dot(gap, gap)
        for made in range(most):
            if error <= enough * model.norm or damping > 1e12:
                return parts, made
            if len(errors) > 5 and errors[-6] - error <= self.gain * error:
                return parts, made
            step = model.step(around, gap, damping, self.products)
            tried = [part + change for part, change in zip(parts, step)]
            near = model.around(tried)
            left = model.gap(tried, near)
            found = _dot(left, left)
            if found < error:
                parts, around, gap, error = tried, near, left, found
                damping /= 5.0
                errors.append(error)
            else:
                damping *= 4.0
        return parts, most


@dataclass(frozen=True)
class _Model:
    """A tensor and the environments of the cores of a topology."""

    tensor: Array
    topology: Topology

    @cached_property
    def norm(self) -> float:
        return _dot(self.tensor, self.tensor)

    @cached_property
    def expressions(self) -> list[Callable[..., Array]]:
        """What contracts all cores but one: its bonds first, then the modes of the others."""
        order, shapes = len(self.topology.modes), self.topology.shapes
        names = [
            [*([v] if v < order else []), *(order + k for k in legs)]
            for v, legs in enumerate(self.topology.legs)
        ]
        made = []
        for v, legs in enumerate(self.topology.legs):
            out = [*(order + k for k in legs), *(k for k in range(order) if k != v)]
            text = ",".join("".join(map(opt_einsum.get_symbol, n)) for n in _but(names, v))
            text += "->" + "".join(map(opt_einsum.get_symbol, out))
            made.append(opt_einsum.contract_expression(text, *_but(shapes, v), optimize="greedy"))
        return made

    def parts(self, cores: tuple[Array, ...]) -> Parts:
        modes = [*self.topology.modes, *[1] * self.topology.hidden]
        return [core.reshape(mode, -1) for mode, core in zip(modes, cores)]

    def cores(self, parts: Parts) -> tuple[Array, ...]:
        return tuple(part.reshape(shape) for part, shape in zip(parts, self.topology.shapes))

    def around(self, parts: Parts) -> Parts:
        """Return the environment of every core: its bonds by all other modes."""
        cores = self.cores(parts)
        return [
            np.asarray(contract(*_but(cores, v))).reshape(part.shape[1], -1)
            for v, (contract, part) in enumerate(zip(self.expressions, parts))
        ]

    def along(self, v: int, part: Array, around: Parts) -> Array:
        """Return the tensor that one part makes with its environment."""
        modes = self.topology.modes
        made: Array = part @ around[v]
        if v >= len(modes):
            return made.reshape(modes)
        return np.moveaxis(made.reshape(modes[v], *_but(modes, v)), 0, v)

    def gap(self, parts: Parts, around: Parts) -> Array:
        """Return what is missing."""
        missing: Array = self.tensor - self.along(0, parts[0], around)
        return missing

    def back(self, missing: Array, around: Parts) -> Parts:
        """Apply the transpose of the Jacobian."""
        order = len(self.topology.modes)
        return [
            (np.moveaxis(missing, v, 0).reshape(self.topology.modes[v], -1) if v < order
             else missing.reshape(1, -1)) @ env.T
            for v, env in enumerate(around)
        ]  # fmt: skip

    def step(self, around: Parts, gap: Array, damping: float, products: int) -> Parts:
        """Return the step of `(J^T J + damping D) step = J^T gap`, D the mean diagonal of each N.

        Preconditioned conjugate gradients (Hestenes and Stiefel, 1952), to 0.01 of the norm that
        they begin with or `products`.
        """
        normal = [env @ env.T for env in around]
        weights = [damping * np.trace(n) / len(n) + 1e-300 for n in normal]
        inverse = [np.linalg.inv(n + w * np.eye(len(n))) for n, w in zip(normal, weights)]
        left = self.back(gap, around)
        step = [np.zeros_like(part) for part in left]
        eased = [part @ inv for part, inv in zip(left, inverse)]
        way, size = eased, _dots(left, eased)
        goal = 1e-4 * size
        for _ in range(products):
            moved = np.zeros_like(gap)
            for v, part in enumerate(way):
                moved += self.along(v, part, around)
            turned = [b + w * p for b, w, p in zip(self.back(moved, around), weights, way)]
            share = size / (_dots(way, turned) or 1.0)
            step = [a + share * b for a, b in zip(step, way)]
            left = [a - share * b for a, b in zip(left, turned)]
            eased = [part @ inv for part, inv in zip(left, inverse)]
            before, size = size, _dots(left, eased)
            if size <= goal:
                break
            way = [a + size / before * b for a, b in zip(eased, way)]
        return step


def _level(parts: Parts) -> Parts:
    """Return parts of the same tensor, all of one norm."""
    norms = [float(np.linalg.norm(part)) or 1.0 for part in parts]
    mean = prod(norm ** (1.0 / len(parts)) for norm in norms)
    return [part * (mean / norm) for part, norm in zip(parts, norms)]


def _but(things: list | tuple, v: int) -> list:  # type: ignore[type-arg]
    """Return all things but one, in order."""
    return [thing for k, thing in enumerate(things) if k != v]


def _dot(a: Array, b: Array) -> float:
    return float(np.vdot(a, b))


def _dots(a: Parts, b: Parts) -> float:
    return sum(_dot(x, y) for x, y in zip(a, b))
