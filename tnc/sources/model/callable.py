"""Models that a function returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.errors import SourceError
from tnc.sources.reference import find_function, user_code
from tnc.sources.source import Batch, Loaded, ModelSource, models

if TYPE_CHECKING:
    from torch import nn


@models.register("callable")
@dataclass(frozen=True)
class CallableModel(ModelSource):
    """`function(**kwargs)`, named `pkg.mod:function`; calling it runs its code.

    It returns the model, or the model and an example input (a tuple or a mapping).
    """

    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Loaded:
        model, inputs = made_by(self.function, self.kwargs)
        return Loaded(model.eval(), inputs)

    def skeleton(self, folder: Path | None = None) -> nn.Module:
        return made_by(self.function, self.kwargs)[0].eval()


def made_by(function: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Batch | None]:
    """Call a function that returns a model or (model, example). Raises SourceError."""
    from torch import nn

    call = find_function(function)
    with user_code(function):
        made = call(**kwargs)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"the function returned {type(model).__name__}, not a model",
            where=function,
            hint="return a torch.nn.Module, or (module, example input)",
        )
    return model, inputs
