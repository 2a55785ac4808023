"""The least largest operator-norm error over all layers (ALDS)."""

from __future__ import annotations

from dataclasses import dataclass

from tnc.planner.choosing import choose
from tnc.planner.operator_norm import relative_norms
from tnc.planner.options import is_fixed
from tnc.planner.task import Allocator, Allotment, Task, allocators, needs_costs


@allocators.register("alds")
@dataclass(frozen=True)
class ALDS(Allocator):
    """Make the largest relative operator-norm error of all layers as small as can be.

    min max_l e_l  subject to the budgets, over every rank, number of groups and fold scheme that
    the rules offer (Liebenwein et al., 2021, equation 3). Their method alternates between one error
    for all layers and the best number of groups in each, from several starts; here the threshold
    is searched over the errors that occur, so the answer is never worse. Ranks are not rounded.
    """

    def refuses(self, task: Task) -> str:
        return needs_costs(task)

    def allot(self, task: Task) -> Allotment:
        norms: dict[tuple[str, int], float] = {}
        storage = {"params", "bytes"} >= task.budget.limits.keys()
        offers = {target.name: (target, options) for target, options in task.offers}
        open_ones = [target for target, _ in task.offers if not is_fixed(target)]
        for subject, group in task.visits(open_ones):
            for target in group:
                task.told("operator norms", len(norms), len(open_ones))
                spec = task.spec
                pairs = relative_norms(subject, target, spec.round_to, spec.seed, storage)
                offers[target.name] = (target, tuple(option for option, _ in pairs))
                norms |= {(target.name, id(option)): error for option, error in pairs}
        found = choose(
            task,
            "alds",
            tuple(offers.values()),
            lambda target, option: norms.get((target.name, id(option)), 0.0),
            "max",
        )
        worst = max((norms.get((t.name, id(o)), 0.0) for t, o in found.chosen), default=0.0)
        return Allotment(found.chosen, "alds", f"largest relative operator-norm error {worst:.4g}")
