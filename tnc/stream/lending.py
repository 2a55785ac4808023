"""Weights for a while: parameters without memory get their values and give them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tnc.rewrite.edit import owner_of
from tnc.sources.checkpoint import Checkpoint
from tnc.sources.skeleton import tied_names


class Lender:
    """A model on the meta device and the files that hold its weights."""

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.model, self._checkpoint = model, checkpoint
        self._ties = tied_names(model)

    def read(self, name: str) -> Tensor:
        """Return a parameter's value, in the dtype that the model has it in."""
        first = self._ties[name][0]
        module, attribute = owner_of(self.model, first)
        wanted = module._parameters.get(attribute)
        found = self._checkpoint.read(first)
        return found if wanted is None else found.to(wanted.dtype)

    @contextmanager
    def lent(self, names: Iterable[str]) -> Iterator[None]:
        """Let parameters have their values inside of the block, under all of their names."""
        held: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for first in dict.fromkeys(self._ties[name][0] for name in names):
                module, attribute = owner_of(self.model, first)
                old = module._parameters[attribute]
                assert old is not None
                new = nn.Parameter(self.read(first), old.requires_grad)
                for name in self._ties[first]:
                    module, attribute = owner_of(self.model, name)
                    held.append((module, attribute, old))
                    module._parameters[attribute] = new
            yield
        finally:
            for module, attribute, old in held:
                module._parameters[attribute] = old
