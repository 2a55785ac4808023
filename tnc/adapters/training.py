"""The deltas that are trained: which are active, who shares their parameters, who trains them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from tnc.adapters.adapters import Adapters
from tnc.adapters.bank import Bank
from tnc.adapters.delta import Delta, grouped

Optimizer = torch.optim.Optimizer
Turn = tuple[str, Delta, set[int]]
"""A delta by adapter and weight, and the numbers of the optimizers that train it."""


class Training:
    """The active deltas of a model and optimizers; what was found is kept until either changes."""

    def __init__(self, adapters: Adapters, optimizers: Sequence[Optimizer]) -> None:
        self.adapters, self.optimizers = adapters, optimizers
        self._peers: dict[int, list[Delta]] = {}
        self._known: tuple[int, list[tuple[str, Delta]]] = (-1, [])
        self._turns: tuple[tuple[int, ...], list[Turn]] = ((), [])

    def deltas(self) -> list[tuple[str, Delta]]:
        """Return the active deltas; the model is searched for them when adapters have changed."""
        if self._known[0] != Bank.changes:
            found = [
                (f"{name}/{path}", delta)
                for name in self.adapters.active
                for path, delta in self.adapters.deltas(name).items()
            ]
            self._known = (Bank.changes, found)
            self._peers = grouped(self.adapters.model)
        return self._known[1]

    def alike(self, delta: Delta) -> list[Delta]:
        """Return the deltas that share the parameters of one, itself among them."""
        self.deltas()
        return self._peers[id(delta)]

    def share(self, delta: Delta) -> None:
        """Tell what a delta remembers to those that share its parameters."""
        for peer in self.alike(delta):
            peer.steps, peer.memory, peer.probe = delta.steps, delta.memory, delta.probe
            for name in delta.constants:  # moving a model to another device takes them apart
                peer._buffers[name] = delta._buffers[name]

    def turns(self) -> list[Turn]:
        """Return the deltas that are trained, with the numbers of all their optimizers."""
        listed = [
            [id(p) for group in optimizer.param_groups for p in group["params"]]
            for optimizer in self.optimizers
        ]
        deltas = self.deltas()
        state = (Bank.changes, *chain.from_iterable((*own, 0) for own in listed))
        if self._turns[0] != state:
            self._turns = (state, self._holding([set(own) for own in listed], deltas))
        return self._turns[1]

    def _holding(
        self, owners: Sequence[set[int]], deltas: Sequence[tuple[str, Delta]]
    ) -> list[Turn]:
        found = []
        for key, delta in deltas:
            mine = {id(p) for p in delta.trained.values()}
            holding = {k for k, own in enumerate(owners) if own & mine}
            if holding:
                found.append((key, delta, holding))
        return found
