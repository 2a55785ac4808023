"""What a search strategy is; the registered ones are in `strategies/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar

from tnc.explore.problem import Problem
from tnc.explore.trial import Asking, Batch, Scored
from tnc.registry import Registry


class Strategy(ABC):
    """A frozen dataclass whose fields are its options.

    `search` is the paper's loop written as a generator: it yields a batch, is sent the scored
    trials in the same order, and returns why it ends, if it does. It draws from `rng` only,
    so what it asks next is a function of problem, history and seed (`propose`), and a run that was
    killed goes on by being asked again, with what is on record for answers.
    """

    any_space: ClassVar[bool] = False
    """Whether it asks a space for its axes only, so that it searches foldings as well as bonds."""

    @abstractmethod
    def search(self, problem: Problem, rng: Random) -> Asking:
        """Yield batches of trials and receive their scores."""

    def refuses(self, problem: Problem) -> str:
        """Return why the strategy cannot search this problem; empty when it can."""
        del problem
        return ""


strategies: Registry[type[Strategy]] = Registry("strategy", "tnc.explore.strategies")


def propose(
    strategy: Strategy, problem: Problem, history: Sequence[Sequence[Scored]], seed: int
) -> Batch | None:
    """Return the batch that follows the rounds of `history`, None at the end of the search."""
    asking = strategy.search(problem, Random(seed))
    try:
        batch = next(asking)
        for told in history:
            batch = asking.send(tuple(told))
    except StopIteration:
        return None
    return batch
