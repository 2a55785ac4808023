"""The knapsack on curves that were measured on the model, one target at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from tnc.decide.target import Target
from tnc.errors import PlanError
from tnc.planner.choosing import choose
from tnc.planner.options import Option, is_fixed
from tnc.planner.task import Allocator, Allotment, Task, allocators, needs_costs
from tnc.planner.trial import Trial

FLOOR = 1e-12
"""Distances below this count as this: logarithms are interpolated."""


@allocators.register("probed")
@dataclass(frozen=True)
class Probed(Allocator):
    """Compress every target alone at up to `sizes` sizes of each structure, and measure the model.

    The knapsack minimises the sum of these distances; options between two sizes get the logarithm
    of (distance / predicted error) interpolated over the logarithm of the parameters. Cost: targets
    x structures x sizes fits, and as many passes over `samples` calibration samples.
    """

    sizes: int = 7
    samples: int = 96

    needs_model = True

    def __post_init__(self) -> None:
        if self.sizes < 2 or self.samples < 1:
            raise PlanError("probed: sizes is at least 2, samples at least 1")

    def refuses(self, task: Task) -> str:
        if task.evaluation is None or not task.batches:
            return "needs calibration data and an evaluation"
        return needs_costs(task)

    def allot(self, task: Task) -> Allotment:
        trial, on = task.trial(self.samples)
        scores: dict[tuple[str, int], float] = {}
        trials = 0
        for number, (target, options) in enumerate(task.offers):
            task.told("probing on the model", number, len(task.offers))
            if is_fixed(target):
                continue
            curve, count = self._curve(trial, target, options)
            trials += count
            scores |= {(target.name, place): value for place, value in curve.items()}
            trial.forget()
        places = {id(option): place for _, options in task.offers for place, option in
                  enumerate(options)}  # fmt: skip
        found = choose(task, "probed", score=lambda t, o: scores.get((t.name, places[id(o)]), 0.0))
        task.notes.append(f"probed: {trials} trials of one target each on the model, on {on}")
        return Allotment(found.chosen, "probed", found.remark)

    def _curve(
        self, trial: Trial, target: Target, options: Sequence[Option]
    ) -> tuple[dict[int, float], int]:
        """Return the distance by the place of an option, and how many were measured."""
        found: dict[int, float] = {}
        groups: dict[tuple[str, str], list[int]] = {}
        trials = 0
        for place, option in enumerate(options):
            if option.candidate is None:
                found[place] = 0.0
            else:
                key = (option.candidate.family, option.candidate.group)
                groups.setdefault(key, []).append(place)
        for own in groups.values():
            own.sort(key=lambda place: options[place].cost(target).params)
            count = min(self.sizes, len(own))
            tried = sorted({round(k * (len(own) - 1) / max(1, count - 1)) for k in range(count)})
            sizes, ratios = [], []
            for k in tried:
                option = options[own[k]]
                distance = float(f"{trial.figure([(target, option)]):.4g}")
                sizes.append(log(option.cost(target).params))
                ratios.append(log(max(distance, FLOOR) / max(option.error, FLOOR)))
            trials += len(tried)
            for place in own:
                size = log(options[place].cost(target).params)
                ratio = exp(float(np.interp(size, sizes, ratios)))
                found[place] = float(f"{max(options[place].error, FLOOR) * ratio:.4g}")
        return found, trials
