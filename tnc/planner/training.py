"""The groups of a spec's optimizer in what a plan makes of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tnc.decide.grouping import WHERE, GroupCount, check_early
from tnc.decide.plan import Plan
from tnc.decide.spec import Spec
from tnc.decide.target import Target
from tnc.errors import BindError
from tnc.optim.building import choose, count, parameters_of
from tnc.rewrite.shaping import compiled_shapes
from tnc.rewrite.subject import Subject


def check_groups(
    subject: Subject, targets: Sequence[Target], spec: Spec, locations: Mapping[str, str]
) -> None:
    """Raise PlanError for what is wrong with the optimizer's groups whatever is planned."""
    if spec.optimizer is None or not spec.optimizer.groups:
        return
    names = [name for target in targets for site in target.sites for name in site.aliases]
    beginnings = [f"{name.rpartition('.')[0]}.cores.".lstrip(".") for name in names]
    beginnings += [f"{name}_structure.cores." for name in names]
    held = [trained for _, trained in parameters_of(subject.model)]
    check_early(held, names, beginnings, spec.optimizer, locations)


def groups_of(
    subject: Subject, plan: Plan, spec: Spec, locations: Mapping[str, str]
) -> tuple[GroupCount, ...]:
    """Count what every group of the spec's optimizer trains and keeps; none without an optimizer.

    Raises PlanError for groups that do not fit the model, BindError for a parameter that its rule
    cannot train.
    """
    if spec.optimizer is None:
        return ()
    made = compiled_shapes(subject, plan).model
    try:
        return count(made, choose(made, spec.optimizer, locations))
    except BindError as error:
        error.where = ", ".join(filter(None, (locations.get(WHERE, WHERE), error.where)))
        raise
