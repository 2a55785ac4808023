"""MeZO: training without gradients, in the memory of inference, with a log that replays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tnc.errors import BindError
from tnc.optim.seeds import Layout, direction, mixed
from tnc.optim.zeroth import ZerothOrder, wandering

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One step: its seed, the slope along its direction, rate and decay of every group."""

    seed: int
    slope: float
    rates: tuple[float, ...]
    decays: tuple[float, ...]


@dataclass
class Log:
    """Everything that a run did: its steps can be taken again, bit for bit, without the data.

    `groups` tells the group of every parameter. A log fits parameters of the same shapes, types
    and device type, in the same order; the numbers drawn and their rounding belong to torch's
    version too.
    """

    layout: Layout
    groups: tuple[int, ...]
    eps: float
    entries: list[Entry] = field(default_factory=list)

    @torch.no_grad()
    def replay_(self, parameters: Sequence[Tensor]) -> None:
        """Take all steps on parameters that are as they were when the log began.

        Raises BindError where they are not those that it was recorded on, such as cores.
        """
        held = list(parameters)
        self.layout.check(held)
        for entry in self.entries:
            for place, parameter in enumerate(held):
                drawn = direction(parameter, entry.seed, place)
                for move in wandering(self.eps):
                    parameter.add_(drawn, alpha=move)
                advance_(parameter, drawn, entry, self.groups[place])

    def text(self) -> str:
        """Write the log as JSON; numbers are exact."""
        steps = [[e.seed, e.slope, e.rates, e.decays] for e in self.entries]
        head = {"version": VERSION, "layout": self.layout.written(), "eps": self.eps}
        return json.dumps(head | {"groups": self.groups, "steps": steps})

    @classmethod
    def parse(cls, text: str) -> Log:
        """Read what `text` wrote. Raises BindError for anything else."""
        try:
            given = json.loads(text)
            if given["version"] != VERSION:
                raise BindError(f"a log of version {given['version']}; this reads {VERSION}")
            entries = [
                Entry(int(seed), float(slope), tuple(rates), tuple(decays))
                for seed, slope, rates, decays in given["steps"]
            ]
            groups = tuple(int(number) for number in given["groups"])
            return cls(Layout.read(given["layout"]), groups, float(given["eps"]), entries)
        except (KeyError, TypeError, ValueError) as error:
            raise BindError(f"not the log of a zeroth-order run: {error!r}") from error


class MeZO(ZerothOrder):
    """`W <- (1 - lr wd) W - lr c z`, `c = (L(W + eps z) - L(W - eps z)) / 2 eps`, z from a seed.

    `step(closure)` calls the closure twice, without gradients. `log` has every step since it began
    (two numbers and the rates): `log.replay_(parameters)` takes them again from the parameters of
    the beginning. Where the parameters were exchanged since, as by `tnc.bind`, `new_log` begins
    another. (Malladi et al., Fine-Tuning Language Models with Just Forward Passes, NeurIPS 2023,
    algorithm 1; directions are drawn for each parameter from its own seed.)

    >>> w = torch.nn.Parameter(torch.ones(3)); first = w.detach().clone()
    >>> mezo = MeZO([w], lr=0.1)
    >>> _ = mezo.step(lambda: w.square().sum())
    >>> Log.parse(mezo.log.text()).replay_([first])
    >>> torch.equal(first, w)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": int(seed)}
        )
        self.new_log()

    def new_log(self) -> Log:
        """Begin a log at the present parameters and return it."""
        numbers = {id(p): k for k, group in enumerate(self.param_groups) for p in group["params"]}
        held = self.parameters
        groups = tuple(numbers[id(parameter)] for parameter in held)
        self.log = Log(Layout.of(held), groups, float(self.param_groups[0]["eps"]))
        return self.log

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """Take one step and return the mean of the two losses."""
        held = self.parameters
        if self.log.layout != Layout.of(held) or self.log.eps != self.param_groups[0]["eps"]:
            raise BindError(
                "the parameters or eps are not those that the log began with",
                where=f"step {self.param_groups[0]['taken']}",
                hint="keep the log, then begin another: new_log()",
            )
        seed = mixed(int(self.param_groups[0]["seed"]), self.count())
        slope, loss = self.slope(closure, seed)
        rates = tuple(float(group["lr"]) for group in self.param_groups)
        decays = tuple(float(group["weight_decay"]) for group in self.param_groups)
        entry = Entry(seed, slope, rates, decays)
        for place, parameter in enumerate(held):
            drawn = direction(parameter, seed, place)
            advance_(parameter, drawn, entry, self.log.groups[place])
        self.log.entries.append(entry)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"log": self.log}


def advance_(parameter: Tensor, drawn: Tensor, entry: Entry, group: int) -> None:
    """Take one step on one parameter, in place."""
    rate, decay = entry.rates[group], entry.decays[group]
    if decay:
        parameter.mul_(1 - rate * decay)
    parameter.add_(drawn, alpha=-rate * entry.slope)
