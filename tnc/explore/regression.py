"""A Gaussian process over rows of logarithms of bonds: what spectra miss about the error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tnc.explore.evaluator import Array

_LENGTHS = (0.5, 1.0, 2.0, 4.0)
_NOISES = (1e-3, 1e-1)


@dataclass(frozen=True)
class Process:
    """A Gaussian process with a squared exponential kernel and a constant mean.

    Length and noise are those of a few that make the data most likely (Rasmussen and Williams,
    2006, equation 5.8); the amplitude is in closed form.
    """

    rows: Array
    weights: Array
    factor: Array
    mean: float
    amplitude: float
    length: float

    @classmethod
    def of(cls, rows: Array, values: Array) -> Process:
        """Fit to `values` (points,) at `rows` (points, pairs)."""
        distances = _distances(rows, rows)
        scale = float(np.sqrt(np.median(distances[distances > 0]))) if len(rows) > 1 else 1.0
        best, found = -np.inf, None
        for length in (scale * times for times in _LENGTHS):
            kernel = np.exp(-0.5 * distances / length**2)
            for noise in _NOISES:
                factor = np.asarray(
                    np.linalg.cholesky(kernel + noise * np.eye(len(rows))), np.float64
                )
                ones = _solve(factor, np.ones(len(rows)))
                mean = float(ones @ values / ones.sum())
                weights = _solve(factor, values - mean)
                amplitude = max(float((values - mean) @ weights) / len(rows), 1e-12)
                likelihood = -0.5 * len(rows) * np.log(amplitude) - np.log(np.diag(factor)).sum()
                if likelihood > best:
                    best = likelihood
                    found = cls(rows, weights, factor, mean, amplitude, length)
        assert found is not None  # every kernel with noise has a factor
        return found

    def at(self, rows: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation at other rows."""
        kernel = np.exp(-0.5 * _distances(rows, self.rows) / self.length**2)
        half = np.linalg.solve(self.factor, kernel.T)
        left = np.maximum(1.0 - np.square(half).sum(axis=0), 1e-9)
        return self.mean + kernel @ self.weights, np.sqrt(self.amplitude * left)


def _distances(a: Array, b: Array) -> Array:
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None]
    found: Array = np.maximum(squares - 2 * a @ b.T, 0.0)
    return found


def _solve(factor: Array, values: Array) -> Array:
    found: Array = np.linalg.solve(factor.T, np.linalg.solve(factor, values))
    return found
