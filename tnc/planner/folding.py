"""Search inside a plan: the foldings of a site's weight that fit it best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tnc.decide.candidates import name_of
from tnc.decide.target import Target
from tnc.derive.cost import parameters
from tnc.errors import PlanError
from tnc.explore import Limits, MemoryRecord, Problem, engines, objectives, search, strategies
from tnc.explore.engine import Done, Task
from tnc.explore.fitting import seed_of
from tnc.explore.foldings import Folded, FoldingSpace
from tnc.explore.trial import Outcome
from tnc.net import Signature
from tnc.structures import Family
from tnc.structures.family import Sought

MODES = {"output_modes", "input_modes"}
"""The options of a family whose matrix can be folded in many ways."""

ErrorOf = Callable[[Family, float], float]
"""The relative squared error of a family at a share of the dense parameters."""


def searched(
    families: Sequence[Family], target: Target, error_of: ErrorOf, seed: int, notes: list[str]
) -> Iterator[Family]:
    """Yield the families, those that ask for a search replaced by what it finds."""
    for family in families:
        wanted = family.sought()
        if wanted is None:
            yield family
        else:
            for member in wanted.families:
                yield from _found(wanted, member, target, error_of, seed, notes)


def _found(
    wanted: Sought, member: Family, target: Target, error_of: ErrorOf, seed: int, notes: list[str]
) -> Iterator[Family]:
    """Yield a family at its even folding, then at the best that a search finds."""
    yield member
    signature, where = target.signature, target.name
    names = {field.name for field in fields(member)}  # type: ignore[arg-type]
    if len(signature.inputs) > 1 or not names >= MODES or _fixed(member):
        notes.append(f"{where}: {name_of(member)} has no folding to search for")
        return
    space = _space(wanted, member, signature)
    strategy = strategies.get(wanted.strategy)()
    problem = Problem(space, objectives.get("error-at-size")(1.0), None)  # type: ignore
    reason = "" if strategy.any_space else "it searches for bonds"
    if reason:
        raise PlanError(
            f"strategy {wanted.strategy!r} cannot search foldings: {reason}",
            where=where,
            hint="`strategy: tnale` or `random` can",
        )
    limits = Limits(evaluations=wanted.evaluations, repeats=20)
    work = _Work(wanted, member, error_of)
    with engines.get("serial")().open(work) as pool:
        found = search(problem, strategy, pool, MemoryRecord(), limits, seed_of(seed, where))
    told = sorted((t for t in found.trials if t.outcome.ok), key=lambda t: t.score)
    best = [_at(member, t.trial.topology) for t in told[: wanted.best]]  # type: ignore[arg-type]
    even = error_of(member, wanted.keep)
    notes.append(
        f"{where}: {len(found.trials)} of at most {space.points:,} foldings of {name_of(member)} "
        f"fitted at {wanted.keep:.0%}: error {even**0.5:.4g} -> "
        f"{min([even, *(t.score for t in told)]) ** 0.5:.4g}"
    )
    yield from (family for family in best if family != member)


def _fixed(member: Any) -> bool:
    return bool(member.output_modes or member.input_modes)


def _at(member: Family, folded: Folded) -> Family:
    modes = {"output_modes": folded.outputs, "input_modes": folded.inputs}
    return replace(member, **modes)  # type: ignore[type-var]


def _space(wanted: Sought, member: Family, signature: Signature) -> FoldingSpace:
    (rows,), (columns,) = signature.outputs, signature.inputs
    most = int(wanted.keep * signature.parameters)

    def size(outputs: tuple[int, ...], inputs: tuple[int, ...]) -> int:
        template = _at(member, Folded(outputs, inputs, 0.0, 0)).template(signature)
        ranks = template.within(most)
        return 0 if ranks is None else parameters(template.at(ranks))

    return FoldingSpace(rows, columns, int(getattr(member, "factors", 2)), size)


@dataclass(frozen=True)
class _Work:
    """`Task -> (Outcome, None)`: the error of one folding at the size that is asked."""

    wanted: Sought
    member: Family
    error_of: ErrorOf

    def __call__(self, task: Task) -> Done:
        folded: Any = task.trial.topology
        error = self.error_of(_at(self.member, folded), self.wanted.keep)
        metrics = {"rse": error, "ratio": folded.ratio, "params": float(folded.parameters)}
        return Outcome(metrics), None
