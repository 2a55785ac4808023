"""What a view is: how a layer applies its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tnc.errors import KernelError
from tnc.kernels.shown import Explained
from tnc.net import Structure
from tnc.nn.generated import GeneratedLinear
from tnc.nn.generated_lookup import GeneratedLookUp
from tnc.nn.given import Given

Cores = Mapping[str, Tensor]


@dataclass(frozen=True)
class View(ABC):
    """How a layer applies its weight: inert options and pure functions of the cores."""

    name: ClassVar[str]
    gathers: ClassVar[bool] = False
    """Whether sparse cores come as they are stored, to be looked up; else as dense tensors."""

    @abstractmethod
    def prepare(self, structure: Structure) -> Any:
        """Search orders and lower programs: everything that does not depend on tensors."""

    @abstractmethod
    def apply(self, prepared: Any, cores: Cores, bias: Tensor | None, x: Tensor) -> Tensor:
        """Apply the weight to the layer's input, by what `prepare` returned."""

    def generated(self, structure: Structure) -> GeneratedLinear | GeneratedLookUp | None:
        """Return generated kernels that the layer is to use where they apply."""
        return None

    @property
    def kernel_view(self) -> View:
        """The view without what makes no difference to kernels: equal ones share them."""
        return self

    def why_plain(self, structure: Structure, dtype: torch.dtype, device: str) -> str:
        """Say why a layer takes no generated kernels; empty where it does."""
        return f"no kernels are generated for layers of the kind {self.name}"

    def outcomes(self, structure: Structure, given: Given, bias: bool) -> tuple[Explained, ...]:
        """Choose kernels for what is given, by the tuning in force, and explain them."""
        return ()

    def recorded(self, structure: Structure, entry: Mapping[str, Any]) -> Explained:
        """Return an outcome that was written down. Raises KernelError where it does not fit."""
        raise KernelError(f"layers of the kind {self.name} have no kernels")

    def adopt(self, prepared: Any, generated: Any, given: Given) -> None:  # noqa: B027
        """Choose kernels for what is given, by the tuning in force, to be used from now on."""

    def resized(self, prepared: Any, x: Tensor, output_size: Sequence[int]) -> Any:
        """Return what `prepare` returned, for results of another size. Raises KernelError."""
        raise KernelError(f"the {self.name} view has no output_size")

    def forget(self, prepared: Any) -> None:  # noqa: B027
        """Drop what was kept of the cores with what `prepare` returned."""

    def attributes(self, structure: Structure) -> dict[str, Any]:
        """Return attributes of the replaced layer that other code may read."""
        return {}

    def layout(self, weight: Tensor) -> Tensor:
        """Bring the dense weight into the layout of the replaced layer."""
        return weight

    def as_json(self) -> dict[str, Any]:
        """Write the view as plain data; `view_from_json` reads it back."""
        return {"view": self.name, **asdict(self)}
