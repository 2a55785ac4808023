"""AdAdaGrad's batch sizes: a norm test says when a batch is too small for its gradient's noise."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any

import torch
from torch import Tensor

from tnc.errors import BindError


class NormTest:
    """`b <- min(most, ceil(V / (eta^2 |g|^2)))` where `V / b > eta^2 |g|^2`, else b stays.

    g is the mean gradient of a batch, V the variance of one sample's gradient, summed over entries.
    V is estimated from the gradients of parts of the batch, microbatches or processes: with M parts
    of n_m samples, `V = sum over m of n_m |g_m - g|^2 / (M - 1)`, whose mean is right for any sizes
    of parts. Sizes never shrink. Meant for `torch.optim.Adagrad`, and works beside any optimizer.
    (Lau, Liu and Kolar, AdAdaGrad, 2024, algorithm 1 with the norm test of Byrd et al., 2012.)

    One gradient is held between the parts of a batch.

    >>> test = NormTest(size=8, most=64, eta=0.5)
    >>> test.observe([torch.tensor([1.0])], 4); test.observe([torch.tensor([3.0])], 4)
    >>> test.advance()  # V = 8, |g|^2 = 4: 8 / (0.25 * 4) is no more than 8
    8
    >>> test.observe([torch.tensor([-1.0])], 4); test.observe([torch.tensor([3.0])], 4)
    >>> test.advance()  # V = 32, |g|^2 = 1
    64
    """

    _mean: list[Tensor | None] | None
    _spread: float
    _samples: int
    _parts: int

    def __init__(self, size: int, most: int, eta: float = 0.9) -> None:
        if not 1 <= size <= most:
            raise BindError(f"size {size} is not between 1 and most, {most}")
        if not eta > 0:
            raise BindError(f"eta is {eta!r}", hint="give a number above 0, below 1 as a rule")
        self.size, self.most, self.eta = int(size), int(most), float(eta)
        self._forget()

    @torch.no_grad()
    def observe(self, gradients: Iterable[Tensor | None], samples: int) -> None:
        """Take note of the mean gradient over one part of the batch.

        `gradients` are those of all parameters in a fixed order, None for zero. Raises BindError
        where their number differs from the other parts'.
        """
        if samples < 1:
            raise BindError(f"a part of {samples} samples")
        given = [None if found is None else found.detach() for found in gradients]
        if self._mean is None:
            self._mean = [None if found is None else found.clone() for found in given]
        elif len(given) != len(self._mean):
            raise BindError(f"{len(given)} gradients, and {len(self._mean)} of the part before")
        else:
            self._add(given, self._mean, samples)
        self._samples += samples
        self._parts += 1

    def advance(self) -> int:
        """Run the test on the parts since the last call, and return the size of the next batch.

        Raises BindError for fewer than two parts, which have no variance.
        """
        if self._parts < 2:
            raise BindError(
                f"the norm test has seen {self._parts} part(s) of the batch",
                hint="observe the gradients of two microbatches or processes at least",
            )
        noise = self._spread / (self._parts - 1)
        square = sum(float(g.double().square().sum()) for g in self._mean or () if g is not None)
        allowed = self.eta**2 * square
        if noise > self.size * allowed:
            wanted = noise / allowed if allowed > 0 else float("inf")
            self.size = self.most if wanted >= self.most else max(self.size, ceil(wanted))
        self._forget()
        return self.size

    def state_dict(self) -> dict[str, Any]:
        """Return the size; the parts of an unfinished batch are left out."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved size."""
        self.size = min(int(state["size"]), self.most)
        self._forget()

    def _add(self, given: list[Tensor | None], mean: list[Tensor | None], samples: int) -> None:
        """Update the mean and the spread by one more part (Chan's rule: no cancellation)."""
        share = samples / (self._samples + samples)
        apart = 0.0
        for place, found in enumerate(given):
            held = mean[place]
            if found is None and held is None:
                continue
            if held is None:
                held = mean[place] = torch.zeros_like(found)  # type: ignore[arg-type]
            difference = -held if found is None else found - held
            apart += float(difference.double().square().sum())
            held.add_(difference, alpha=share)
        self._spread += self._samples * share * apart

    def _forget(self) -> None:
        self._mean = None
        self._spread, self._samples, self._parts = 0.0, 0, 0
