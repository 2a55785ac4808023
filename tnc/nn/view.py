"""What a view is: how a layer applies its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from tnc.errors import KernelError
from tnc.net import Structure
from tnc.nn.generated import GeneratedLinear

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

    def generated(self, structure: Structure) -> GeneratedLinear | None:
        """Return generated kernels that the layer is to use where they apply."""
        return None

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
