"""Models from a function for the structure and a safetensors file for the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.errors import SourceError
from tnc.sources.checkpoint import open_checkpoint
from tnc.sources.model.callable import made_by
from tnc.sources.reference import find_path
from tnc.sources.source import Loaded, ModelSource, Streamed, models

if TYPE_CHECKING:
    from torch import nn


@models.register("safetensors")
@dataclass(frozen=True)
class Safetensors(ModelSource):
    """`function(**kwargs)` makes the model, `state` is the file with its weights.

    Every parameter must be in the file and every entry of the file in the model.
    """

    function: str
    state: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Loaded:
        from safetensors.torch import load_file

        model, inputs = made_by(self.function, self.kwargs)
        file = find_path(self.state)
        try:
            state = load_file(file)
        except Exception as error:
            raise SourceError(
                f"cannot read the weights: {error}",
                where=str(file),
                hint="a file in the format of safetensors is needed: copy or save it again",
            ) from error
        _fill(model, state, file)
        return Loaded(model.eval(), inputs)

    def stream(self) -> Streamed:
        from tnc.sources.skeleton import streamed, without_memory

        checkpoint = open_checkpoint([find_path(self.state)])
        with without_memory():
            model, inputs = made_by(self.function, self.kwargs)
        return streamed(model.eval(), checkpoint, inputs=inputs)

    def stored_bytes(self) -> int:
        return find_path(self.state).stat().st_size

    def skeleton(self, folder: Path | None = None) -> nn.Module:
        return made_by(self.function, self.kwargs)[0].eval()


_OTHER = "name the file that belongs to this function and its kwargs"


def _fill(model: nn.Module, state: dict[str, Any], file: Path) -> None:
    own = model.state_dict()
    for name in sorted(set(own) & set(state)):
        if own[name].is_floating_point() and not state[name].is_floating_point():
            raise SourceError(
                f"the weights do not fit: {name!r} holds {state[name].dtype} in the file and "
                f"{own[name].dtype} in the model",
                where=str(file),
                hint="whole numbers are no trained weights: undo the quantization first",
            )
        if own[name].shape != state[name].shape:
            raise SourceError(
                f"the weights do not fit: {name!r} has shape {tuple(state[name].shape)} in the "
                f"file and {tuple(own[name].shape)} in the model",
                where=str(file),
                hint=_OTHER,
            )
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise SourceError(
            f"the weights do not fit: {error}", where=str(file), hint=_OTHER
        ) from error
    counters = [name for name in result.missing_keys if name.endswith("num_batches_tracked")]
    tied = _tied_names(model, state)
    missing = sorted(set(result.missing_keys) - set(counters) - tied)
    if missing or result.unexpected_keys:
        told = [f"no {name!r} in the file" for name in missing]
        told += [f"no {name!r} in the model" for name in sorted(result.unexpected_keys)]
        raise SourceError(
            f"the weights do not fit: {'; '.join(told[:5])}", where=str(file), hint=_OTHER
        )


def _tied_names(model: nn.Module, state: dict[str, Any]) -> set[str]:
    """Names of tensors that the file holds under another name."""
    owned = list(model.named_parameters(remove_duplicate=False))
    held = {id(tensor) for name, tensor in owned if name in state}
    return {name for name, tensor in owned if id(tensor) in held}
