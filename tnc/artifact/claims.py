"""What a compiled model may claim: savings that are there, not only planned."""

from __future__ import annotations

from tnc.errors import PlanError
from tnc.rewrite.compiled import Compiled
from tnc.rewrite.manager import count_parameters


def sizes(compiled: Compiled) -> tuple[int, int]:
    """Return the parameters of the original and of the compiled model, both counted."""
    records = compiled.records
    before = records[0].params_before if records else compiled.plan.total.dense_params
    return before, count_parameters(compiled.model)


def check_savings(compiled: Compiled) -> None:
    """Raise PlanError where a planned structure, or a planned saving, is not in the model."""
    done = {name for reparam in compiled.reparams for name in reparam.old}
    for entry in compiled.plan.entries:
        if entry.structure is not None and not done.issuperset(entry.members):
            missing = "share-input-factors" if len(entry.members) > 1 else "factorize"
            raise PlanError(
                f"the plan gives {entry.site} a structure, but no pass carried that out",
                where="passes",
                hint=f"add {missing!r} to `passes`, or leave `passes` out",
            )
    planned, found = compiled.plan.total.params, sizes(compiled)[1]
    if done and found > planned:
        raise PlanError(
            f"the compiled model has {found:,} parameters, the plan promised {planned:,}",
            where="passes",
            hint="drop the pass after `factorize` that undoes it",
        )
