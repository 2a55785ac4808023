"""Core shapes of one tensor: the packing problem as a value, and its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from tnc.errors import InfeasibleBudget, PlanError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CoreShape:
    """Hold one core shape of a Tucker decomposition.

    `ranks`: one rank per mode; `params`: prod R + sum I_n R_n over the modes with a factor;
    `packed`: sum over modes of the R_n largest squared singular values; `solver`: who found it;
    `error`: ||X - X'||^2 / ||X||^2 where it is known, by the core's energy or by a real fit.
    """

    ranks: tuple[int, ...]
    params: int
    packed: float
    solver: str
    error: float | None = None


@dataclass(frozen=True, eq=False)
class Packing:
    """State the Tucker packing problem of one tensor.

    maximise  sum_n sum_{i <= R_n} a_n[i]
    subject to  prod_n R_n + sum_n I_n R_n <= budget,  1 <= R_n <= prod_{m != n} R_m

    `spectra`: squared singular values a_n of each mode's unfolding, descending, at most I_n each;
    `sizes`: the mode sizes I_n; `budget`: parameters. A mode in `fixed` is kept whole: R_n = I_n
    and no factor matrix, so it adds nothing to the sum (its spectrum may be empty).

    Raises PlanError for inputs that do not fit together, InfeasibleBudget when ranks of 1 are
    already too many parameters. Paper: Ghadiri et al., ICML 2023, section 3 (Tucker packing).

    >>> import numpy as np
    >>> packing = Packing((np.array([3.0, 1.0]), np.array([3.0, 1.0])), (4, 5), 30)
    >>> packing.params((2, 2)), packing.packed((2, 1)), packing.caps
    (22, 7.0, (2, 2))
    """

    spectra: tuple[Floats, ...]
    sizes: tuple[int, ...]
    budget: int
    fixed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        spectra = tuple(np.array(a, dtype=np.float64) for a in self.spectra)
        for spectrum in spectra:
            spectrum.setflags(write=False)
        object.__setattr__(self, "spectra", spectra)
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        object.__setattr__(self, "fixed", tuple(sorted({int(mode) for mode in self.fixed})))
        _check_modes(self.sizes, self.fixed, len(spectra))
        for mode in self.free:
            _check_spectrum(spectra[mode], self.sizes[mode], mode)
        if self.budget < self.smallest:
            raise InfeasibleBudget(
                f"a budget of {self.budget} parameters is below the smallest core shape",
                where=f"tensor of shape {self.sizes}, modes kept whole {self.fixed}",
                hint=f"give at least {self.smallest} parameters, or leave the tensor as it is",
            )

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Name the modes whose rank is chosen."""
        return tuple(mode for mode in range(len(self.sizes)) if mode not in self.fixed)

    @cached_property
    def whole(self) -> int:
        """Count the core entries that the modes kept whole contribute: prod I_n over `fixed`."""
        return prod(self.sizes[mode] for mode in self.fixed)

    @cached_property
    def smallest(self) -> int:
        """Count the parameters of the smallest core shape, all chosen ranks 1."""
        return self.params(tuple(size if n in self.fixed else 1 for n, size in self._modes()))

    @cached_property
    def prefixes(self) -> tuple[Floats, ...]:
        """Sum each spectrum up: entry R of mode n is the energy that rank R packs, entry 0 is 0."""
        return tuple(np.concatenate(([0.0], np.cumsum(spectrum))) for spectrum in self.spectra)

    @cached_property
    def caps(self) -> tuple[int, ...]:
        """Bound each rank by its spectrum and by the budget left when all others are 1."""
        return tuple(self._cap(mode) for mode in range(len(self.sizes)))

    def params(self, ranks: Sequence[int]) -> int:
        """Count the parameters of a core shape: prod R + sum of I_n R_n over the free modes."""
        return prod(ranks) + sum(self.sizes[mode] * ranks[mode] for mode in self.free)

    def packed(self, ranks: Sequence[int]) -> float:
        """Add up the energy that a core shape packs, sum_n sum_{i <= R_n} a_n[i]."""
        return float(
            sum(self.prefixes[n][min(r, len(self.spectra[n]))] for n, r in enumerate(ranks))
        )

    def why_not(self, ranks: Sequence[int]) -> str:
        """Say why a core shape is not allowed; empty when it is."""
        if len(ranks) != len(self.sizes):
            return f"{len(ranks)} ranks for {len(self.sizes)} modes"
        entries = prod(ranks)
        for mode, rank in enumerate(ranks):
            if mode in self.fixed and rank != self.sizes[mode]:
                return f"mode {mode} is kept whole, so its rank is {self.sizes[mode]}, not {rank}"
            if mode not in self.fixed and not 1 <= rank <= len(self.spectra[mode]):
                return f"rank {rank} of mode {mode} is not in 1..{len(self.spectra[mode])}"
            if mode not in self.fixed and rank * rank > entries:
                return f"rank {rank} of mode {mode} exceeds the product of the other ranks"
        params = self.params(ranks)
        return f"{params} parameters exceed {self.budget}" if params > self.budget else ""

    def clip(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """Lower ranks until none exceeds the product of the others; no tensor loses by it."""
        clipped = list(ranks)
        changed = True
        while changed:
            changed = False
            for mode in self.free:
                others = prod(r for n, r in enumerate(clipped) if n != mode)
                if clipped[mode] > others:
                    clipped[mode], changed = others, True
        return tuple(clipped)

    def shape(self, ranks: Sequence[int], solver: str, error: float | None = None) -> CoreShape:
        """Make the answer from ranks, checked.

        Raises PlanError when the ranks break a constraint (a fault of the solver).
        """
        ranks = tuple(int(rank) for rank in ranks)
        if reason := self.why_not(ranks):
            raise PlanError(
                f"{solver} gave core shape {ranks}: {reason}",
                where=f"tensor of shape {self.sizes}",
                hint="report this as a bug",
            )
        return CoreShape(ranks, self.params(ranks), self.packed(ranks), solver, error)

    def _modes(self) -> list[tuple[int, int]]:
        return list(enumerate(self.sizes))

    def _cap(self, mode: int) -> int:
        if mode in self.fixed:
            return self.sizes[mode]
        others = sum(self.sizes[m] for m in self.free if m != mode)
        room = (self.budget - others) // (self.whole + self.sizes[mode])
        return min(len(self.spectra[mode]), room)


def better(one: CoreShape, other: CoreShape) -> bool:
    """Say whether `one` packs more, or as much in fewer parameters, or comes first in order."""
    return _order(one) < _order(other)


def _order(shape: CoreShape) -> tuple[float, int, tuple[int, ...]]:
    return (-shape.packed, shape.params, shape.ranks)


def _check_modes(sizes: tuple[int, ...], fixed: tuple[int, ...], spectra: int) -> None:
    where = f"tensor of shape {sizes}"
    if not sizes or min(sizes) < 1:
        raise PlanError(
            f"mode sizes {sizes} are not all positive",
            where=where,
            hint="give one positive size per mode",
        )
    if spectra != len(sizes):
        raise PlanError(
            f"{spectra} spectra for {len(sizes)} modes",
            where=where,
            hint="give one array of squared singular values per mode",
        )
    if fixed and not 0 <= fixed[0] <= fixed[-1] < len(sizes):
        raise PlanError(
            f"modes to keep whole {fixed} are not among 0..{len(sizes) - 1}",
            where=where,
            hint="count modes from 0",
        )


def _check_spectrum(spectrum: Floats, size: int, mode: int) -> None:
    where = f"spectrum of mode {mode}"
    if spectrum.ndim != 1 or not 1 <= spectrum.size <= size:
        raise PlanError(
            f"an array of shape {spectrum.shape} is no spectrum of a mode of {size}",
            where=where,
            hint=f"give 1 to {size} squared singular values, 1-D",
        )
    if not np.all(np.isfinite(spectrum)) or spectrum.min() < 0:
        raise PlanError(
            "squared singular values must be finite and not negative",
            where=where,
            hint="clip rounding errors to 0",
        )
    if np.any(np.diff(spectrum) > 1e-12 * spectrum[0]):
        raise PlanError(
            "squared singular values must descend", where=where, hint="sort them, largest first"
        )
