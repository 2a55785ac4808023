"""What a fit is, and the registry of fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from tnc.derive.cut import cut
from tnc.fit.folding import fold
from tnc.fit.metric import Metric
from tnc.fit.modes import equalised
from tnc.fit.whitening import is_exact, whiten
from tnc.net import Network, Structure
from tnc.registry import Registry


@dataclass(frozen=True, eq=False)
class Fitted:
    """Cores by name in the weight's dtype, and how they were found.

    `error` is `||W - W'|| / ||W||` in the metric, of the cores as returned.
    """

    cores: dict[str, Tensor]
    error: float
    iterations: int
    converged: bool
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a fit hands back: float64 cores, sweeps taken, whether they settled, and a remark."""

    cores: dict[str, Tensor]
    iterations: int = 1
    converged: bool = True
    note: str = ""


class Fit(ABC):
    """A way to find the cores of a structure.

    `aware` names the metrics that it always honours exactly: 'none', 'inputs', 'outputs' or 'both';
    `honours` tells for one structure. `order` is the place in the preference order of 'auto'.
    `takes_complex` tells that complex weights are fitted too, in complex128.
    """

    name: ClassVar[str]
    aware: ClassVar[str] = "none"
    takes_complex: ClassVar[bool] = False
    order: ClassVar[int]

    @abstractmethod
    def accepts(self, structure: Structure) -> str:
        """Say why the fit does not apply; empty when it does. Decided from the equation alone."""

    @abstractmethod
    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        """Return cores for a float64 weight of `structure.signature.shape`."""

    def honours(self, structure: Structure, metric: Metric) -> bool:
        """Tell whether the result is optimal in the metric as far as the method goes."""
        return metric.plain or self.aware == "both"

    def __call__(
        self, weight: Tensor, structure: Structure, metric: Metric, seed: int = 0
    ) -> dict[str, Tensor]:
        """Return float64 cores by name for a float64 weight of `structure.signature.shape`."""
        return self.outcome(weight, structure, metric, seed).cores


class DirectFit(Fit):
    """A fit of one network in the plain norm; metrics come in by whitening core by core."""

    def accepts(self, structure: Structure) -> str:
        if len(structure.terms) != 1:
            return f"it is a sum of {len(structure.terms)} terms"
        term = structure.terms[0]
        held = [core.name for core in term.equation.cores if core.kind != "trainable"]
        if term.equation.counts:
            return f"{term.equation.counts[0]} counts the entries of a sparse core"
        if held:
            return f"core {held[0]} is {term.equation.core(held[0]).kind}"
        return self.refuses(term)

    @abstractmethod
    def refuses(self, network: Network) -> str:
        """Say why a network of trainable cores does not have the pattern; empty when it has."""

    @abstractmethod
    def solve(self, folded: Tensor, network: Network, seed: int) -> Outcome:
        """Fit a folded weight, whose dimensions are `dense(network).output`, in the plain norm."""

    def complete(self, network: Network) -> bool:
        """Tell whether the fit reproduces any weight, so that the metric does not matter."""
        return saturated(network)

    def honours(self, structure: Structure, metric: Metric) -> bool:
        return is_exact(structure.terms[0], metric) or self.complete(structure.terms[0])

    def outcome(self, weight: Tensor, structure: Structure, metric: Metric, seed: int) -> Outcome:
        term = structure.terms[0]
        if self.complete(term):
            metric = Metric()
        whitening = whiten(term, structure.signature, metric)
        found = self.solve(whitening.weight(fold(weight, term)), term, seed)
        cores = whitening.cores(found.cores)
        if whitening.steps:
            cores = equalised(term, cores)
        return Outcome(cores, found.iterations, found.converged, found.note)


def saturated(network: Network) -> bool:
    """Tell whether every bond is a cut and as large as the smaller side of its unfolding."""
    for bond in network.equation.bonds:
        parted = cut(network.equation, bond)
        if parted is None:
            return False
        sides = [prod(network.size[n] for n in side) for side in (parted.left, parted.right)]
        if network.size[bond] < min(sides):
            return False
    return bool(network.equation.bonds) and not network.equation.shared


fits: Registry[Fit] = Registry("fit", "tnc.fit")
