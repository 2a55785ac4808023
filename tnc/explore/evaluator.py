"""What an evaluator is; the registered ones are in `evaluators/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tnc.explore.topology import Topology
from tnc.registry import Registry

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Fit:
    """Cores of shapes `topology.shapes` and their squared relative error.

    `counts` says what it took: sweeps, steps, restarts.
    """

    rse: float
    cores: tuple[Array, ...]
    counts: dict[str, float] = field(default_factory=dict)


class Evaluator(ABC):
    """A frozen dataclass whose fields are its options; picklable, since workers receive it.

    `version` changes when the same candidate may get another error: records keep them apart.
    """

    version: ClassVar[int] = 1

    @abstractmethod
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
        """Fit `topology` to `tensor` (float64, C order), the best of several starts.

        `effort` below 1 gives that share of sweeps or steps. `start` are cores of these shapes, one
        start more. A fit stops at a squared relative error of `enough`: its lower bound.
        Equal arguments give equal results in any process.
        """

    def warm(self) -> None:  # noqa: B027 most compile nothing
        """Compile what the first fit would compile, so that it is no part of any fit's time."""


evaluators: Registry[type[Evaluator]] = Registry("evaluator", "tnc.explore.evaluators")


def rse(tensor: Array, cores: tuple[Array, ...], topology: Topology) -> float:
    """Return the squared relative error of cores, rebuilt in full: the oracle of every fit."""
    norm = float(np.square(tensor).sum())
    return float(np.square(tensor - dense(cores, topology)).sum()) / (norm or 1.0)


def dense(cores: tuple[Array, ...], topology: Topology) -> Array:
    """Return the tensor that cores of shapes `topology.shapes` stand for."""
    operands: list[Any] = []
    for v, (core, legs) in enumerate(zip(cores, topology.legs)):
        mode = [v] if v < len(topology.modes) else []
        operands += [core, [*mode, *(len(topology.modes) + k for k in legs)]]
    found: Array = np.einsum(*operands, list(range(len(topology.modes))), optimize="greedy")
    return found
