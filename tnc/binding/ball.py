"""The ball of weights: perturbations of cores measured by how far they move what they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tnc.binding.weights import Cored, weights_of
from tnc.optim.conjugate import steepest
from tnc.optim.wrappers.ball import Changes


class WeightBall:
    """`|d|` of all weights together, where cores move their weight by `J d`, to first order.

    The steepest change of cores is `(J^T J)^+ g`, scaled: that which moves the weights along the
    part of the dense gradient that cores can follow. It does not depend on how cores share a
    weight's scale, as the Euclidean ball does. J is taken anew at the parameters' present values;
    `steps` bounds the conjugate gradients of one call. Parameters that are no cores count by
    themselves.

    >>> import torch
    >>> net = torch.nn.Linear(2, 2)
    >>> ball = WeightBall(net)
    >>> found = ball.ascent({net.bias: torch.tensor([3.0, 4.0])})
    >>> found[net.bias]
    tensor([0.6000, 0.8000])
    """

    def __init__(self, model: nn.Module, steps: int = 30) -> None:
        self._weights: list[Cored] = []
        layers: set[int] = set()
        for weight in weights_of(model).cored.values():
            if id(weight.layer) not in layers:
                layers.add(id(weight.layer))
                self._weights.append(weight)
        self._steps = steps

    def ascent(self, gradients: Changes) -> dict[Tensor, Tensor]:
        """Return the steepest change of weight norm 1."""
        found = dict(gradients)
        cores = {
            parameter: gradient
            for parameter, gradient in gradients.items()
            if any(parameter is core for w in self._weights for core in w.cores.values())
        }
        square = 0.0
        if cores:
            moves = _Moves(self._weights, list(cores))
            given = {str(place): gradient for place, gradient in enumerate(cores.values())}
            solved = steepest(moves.push, moves.pull, given, self._steps)
            found |= {p: solved[str(place)] for place, p in enumerate(cores)}
            square += sum(float(part.double().square().sum()) for part in moves.push(solved))
        square += sum(
            float(gradient.double().square().sum())
            for parameter, gradient in gradients.items()
            if parameter not in cores
        )
        scale = square**-0.5 if square > 0 else 0.0
        return {parameter: change * scale for parameter, change in found.items()}


class _Moves:
    """J and its transpose for the cores of several weights; cores may be shared by weights."""

    def __init__(self, weights: list[Cored], cores: list[Tensor]) -> None:
        self._cores = cores
        places = {id(core): str(place) for place, core in enumerate(cores)}
        self._parts = []
        for weight in weights:
            held = weight.cores
            names = {name: places[id(held[name])] for name in held if id(held[name]) in places}
            if names:
                moves = weight.moves()
                self._parts.append((weight, moves, names))

    def push(self, changes: Mapping[str, Tensor]) -> list[Tensor]:
        return [
            moves.push({name: weight.whole(name, changes[at]) for name, at in names.items()})
            for weight, moves, names in self._parts
        ]

    def pull(self, moved: list[Tensor]) -> dict[str, Tensor]:
        found = {str(k): torch.zeros_like(core) for k, core in enumerate(self._cores)}
        for (weight, moves, names), part in zip(self._parts, moved):
            pulled = moves.pull(part)
            for name, at in names.items():
                found[at] = found[at] + weight.kept(name, pulled[name])
        return found
