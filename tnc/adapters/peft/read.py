"""What was read of a checkpoint, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tnc.adapters.method import Method
from tnc.adapters.place import Place
from tnc.adapters.start import Parts


@dataclass(frozen=True, eq=False)
class Loaded:
    """A delta ready to be put: where, by which method, and its cores and extras."""

    place: Place
    method: Method
    parts: Parts


@dataclass(frozen=True, eq=False)
class Read:
    """The deltas, and all other tensors by their key in the model.

    `paths` gives the module of each path of keys, in which wrappers stand as `base_layer`;
    `targets` are the modules that the configuration must choose.
    """

    loaded: Sequence[Loaded]
    rest: Mapping[str, Tensor]
    paths: Mapping[str, str]
    targets: frozenset[str]
