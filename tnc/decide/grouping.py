"""Match the groups of an optimizer with a model's parameters: first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from tnc.decide.optimizers import CLASSES, OptimizerSpec
from tnc.errors import PlanError

WHERE = "optimizer"


@dataclass(frozen=True)
class Trained:
    """A parameter that may be trained: its names (several when tied), and what patterns ask.

    `core` tells a core of a structured layer, `embedding` a table that is looked up.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    core: bool = False
    embedding: bool = False
    trainable: bool = True

    def matches(self, pattern: str) -> bool:
        """Say whether a pattern of names, or one of the words of `CLASSES`, takes it."""
        classes = {
            "matrices": len(self.shape) > 1,
            "vectors": len(self.shape) < 2,
            "cores": self.core,
            "embeddings": self.embedding,
        }
        if pattern in classes:
            return classes[pattern]
        return any(fnmatchcase(name, pattern) for name in self.names)


def assign(
    parameters: Sequence[Trained], spec: OptimizerSpec, locations: Mapping[str, str] | None = None
) -> tuple[int | None, ...]:
    """Return the group of every parameter, `len(spec.groups)` for the default, None for frozen.

    Raises PlanError for a pattern that matches no trainable parameter, for a group whose
    parameters are all taken by groups before it, and for a parameter that no group takes.
    """
    found: list[int | None] = []
    for parameter in parameters:
        taken = [
            number
            for number, group in enumerate(spec.groups)
            if any(parameter.matches(pattern) for pattern in group.match)
        ]
        first = taken[0] if taken else len(spec.groups)
        found.append(first if parameter.trainable else None)
    for number, group in enumerate(spec.groups):
        if not group.allow_empty:
            _check_patterns(parameters, spec, number, found, locations or {})
    left = [p for p, number in zip(parameters, found) if number == len(spec.groups)]
    if left and spec.default is None:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise PlanError(
            f"no group takes {left[0].names[0]} {left[0].shape}{more}",
            where=(locations or {}).get(WHERE, WHERE),
            hint="state a default such as `default: adamw`, or add a group that matches",
        )
    return tuple(found)


def _check_patterns(
    parameters: Sequence[Trained],
    spec: OptimizerSpec,
    number: int,
    found: Sequence[int | None],
    locations: Mapping[str, str],
) -> None:
    where = f"{WHERE}.groups.{number}"
    place = locations.get(where, where)
    group = spec.groups[number]
    for pattern in group.match:
        matched = [p for p in parameters if p.matches(pattern)]
        if not matched:
            raise PlanError(
                f"{pattern!r} matches no parameter", where=place, hint=_guess(pattern, parameters)
            )
        if not any(p.trainable for p in matched):
            raise PlanError(
                f"{pattern!r} matches frozen parameters only, such as {matched[0].names[0]}",
                where=place,
                hint="leave the group out, or let the parameters require gradients",
            )
    if number not in found:
        first = next(
            (own for p, own in zip(parameters, found) if any(map(p.matches, group.match))), None
        )
        raise PlanError(
            f"group {number} ({', '.join(group.match)}) trains nothing: group {first} takes all "
            "that it matches",
            where=place,
            hint="put the narrower group first",
        )


def _guess(pattern: str, parameters: Sequence[Trained]) -> str:
    near = get_close_matches(pattern, CLASSES, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    shown = ", ".join(p.names[0] for p in parameters[:3])
    return f"patterns are of parameter names such as {shown}, or one of {', '.join(CLASSES)}"
