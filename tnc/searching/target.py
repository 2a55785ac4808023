"""What a search is for; the registered ones are in `targets/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from tnc.errors import SearchError, SourceError
from tnc.explore.evaluator import Array
from tnc.explore.topology import Topology
from tnc.registry import Registry


class Target(ABC):
    """A frozen dataclass whose fields are its options; the key of its name tells its kind.

    `{ring: [3, 3], ranks: [2, 2]}` in a spec is the target registered as `ring`: its first field
    has that name.
    """

    @abstractmethod
    def load(self) -> Array:
        """Return the tensor, float64 in C order. Raises SourceError."""

    def resolved(self) -> Self:
        """Return the same target, found from any folder."""
        return self

    def placed(self, topology: Topology) -> dict[str, Any]:
        """Return the spec that puts a network into the target's model. Raises SearchError."""
        del topology
        raise SearchError(
            "the target is a tensor of its own, there is no model to put a network into",
            hint="search a model's weight: `target: {weight: PATH, spec: NAME}`",
        )

    def to_data(self) -> dict[str, Any]:
        """Write as a spec does: every option that is not at its default."""
        told = asdict(self)  # type: ignore[call-overload]
        first = fields(self)[0].name  # type: ignore[arg-type]
        defaults = {item.name: item.default for item in fields(self)}  # type: ignore[arg-type]
        return {name: v for name, v in told.items() if name == first or v != defaults[name]}


targets: Registry[type[Target]] = Registry("target", "tnc.searching.targets")


@dataclass(frozen=True, eq=False)
class Given(Target):
    """A tensor in memory."""

    tensor: Array

    def load(self) -> Array:
        return checked(self.tensor, "the tensor")

    def to_data(self) -> dict[str, Any]:
        return {"file": FILE, "key": KEY}

    def save(self, folder: Path) -> None:
        """Write the tensor into a run's folder, where `to_data` says that it is."""
        np.savez(folder / FILE, target=self.tensor)


FILE, KEY = "target.npz", "target"


def checked(tensor: Any, name: str) -> Array:
    """Return a tensor as float64 in C order. Raises SourceError for what cannot be searched."""
    found = np.asarray(tensor)
    if found.dtype.kind not in "buif":
        raise SourceError(
            f"{name} is {found.dtype} of shape {found.shape}, no tensor of real numbers",
            hint="searches are for real tensors",
        )
    if found.ndim < 2 or found.size < 2:
        raise SourceError(
            f"{name} has shape {found.shape}: a search needs two modes or more",
            hint="fold it into modes first: tensor.reshape(...)",
        )
    wrong = int(found.size - np.isfinite(found).sum())
    if wrong:
        raise SourceError(
            f"{name} holds {wrong} of {found.size} entries that are NaN or infinite",
            hint="mend the tensor first",
        )
    if not found.any():
        raise SourceError(
            f"{name} is zero everywhere: every network fits it", hint="is it the right tensor?"
        )
    return np.ascontiguousarray(found, dtype=np.float64)


def kind_of(data: Mapping[str, Any]) -> list[str]:
    """Return the registered names among the keys of a mapping: one, if it is a target."""
    return [name for name in data if name in targets.all()]
