"""Match the groups of an optimizer with a model's parameters: first match wins."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from tnc.decide.optimizers import CLASSES, OptimizerSpec
from tnc.errors import PlanError

WHERE = "optimizer"


@dataclass(frozen=True)
class GroupCount:
    """What a group holds: parameters, their entries, and the bytes of optimizer state by formula.

    The numbers that count steps are left out: a few bytes a parameter.
    """

    match: str
    rule: str
    parameters: int
    entries: int
    state_bytes: int


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
    if spec.default is None:
        _check_left(left, locations or {})
    return tuple(found)


def _check_left(left: Sequence[Trained], locations: Mapping[str, str]) -> None:
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise PlanError(
            f"no group takes {left[0].names[0]} {left[0].shape}{more}",
            where=locations.get(WHERE, WHERE),
            hint="state a default such as `default: adamw`, or add a group that matches",
        )


def check_early(
    parameters: Sequence[Trained],
    replaced: Collection[str],
    cores: Sequence[str],
    spec: OptimizerSpec,
    locations: Mapping[str, str],
) -> None:
    """Raise PlanError for what is certain before anything is planned.

    That is a pattern that will match nothing, and a parameter that stays and that no group takes.
    `parameters` are those of the model as it is, `replaced` the names of those that may become
    cores, `cores` what the names of cores may begin with, such as `encoder.0.cores.`: how many and
    which there will be is not known yet.
    """
    coming = Trained(("a core",), (), core=True)
    for number, group in enumerate(spec.groups):
        for place, pattern in enumerate(() if group.allow_empty else group.match):
            if any(parameter.matches(pattern) for parameter in parameters):
                continue
            if cores and pattern in CLASSES and coming.matches(pattern):
                continue
            if not any(may_begin(pattern, beginning) for beginning in cores):
                _refuse(parameters, pattern, place_of(locations, number, place))
    patterns = [pattern for group in spec.groups for pattern in group.match]
    staying = [p for p in parameters if p.trainable and not set(p.names) & set(replaced)]
    left = [p for p in staying if not any(map(p.matches, patterns))]
    if spec.default is None:
        _check_left(left, locations)


def may_begin(pattern: str, beginning: str) -> bool:
    """Whether a pattern of names matches some text that begins so and goes on.

    >>> may_begin("*.cores.A", "up.cores."), may_begin("up.*", "up.cores.")
    (True, True)
    >>> may_begin("down.*", "up.cores."), may_begin("up.cores.", "up.cores.")
    (False, False)
    """
    tokens = re.findall(r"\*+|\[!?\]?[^\]]*\]|.", pattern)
    places = _skipped({0}, tokens)
    for letter in beginning:
        after = {
            place if tokens[place][0] == "*" else place + 1
            for place in places
            if place < len(tokens)
            and (tokens[place][0] == "*" or fnmatchcase(letter, tokens[place]))
        }
        places = _skipped(after, tokens)
    return any(place < len(tokens) for place in places)


def _skipped(places: set[int], tokens: Sequence[str]) -> set[int]:
    """Add the places behind stars, which may match nothing."""
    found = set(places)
    for place in places:
        while place < len(tokens) and tokens[place][0] == "*":
            place += 1
            found.add(place)
    return found


def place_of(locations: Mapping[str, str], number: int, pattern: int | None = None) -> str:
    """Return where a group was written, or one of its patterns; in a list of groups alone too."""
    tails = [""] if pattern is None else [f".match.{pattern}", ".match", ""]
    paths = [f"{stem}.{number}{tail}" for tail in tails for stem in (f"{WHERE}.groups", WHERE)]
    return next((locations[p] for p in paths if p in locations), f"{WHERE}.groups.{number}")


def _refuse(parameters: Sequence[Trained], pattern: str, where: str) -> None:
    hint = _guess(pattern, parameters)
    raise PlanError(f"{pattern!r} matches no parameter", where=where, hint=hint)


def _check_patterns(
    parameters: Sequence[Trained],
    spec: OptimizerSpec,
    number: int,
    found: Sequence[int | None],
    locations: Mapping[str, str],
) -> None:
    place = place_of(locations, number)
    group = spec.groups[number]
    for each, pattern in enumerate(group.match):
        matched = [p for p in parameters if p.matches(pattern)]
        if not matched:
            _refuse(parameters, pattern, place_of(locations, number, each))
        if not any(p.trainable for p in matched):
            raise PlanError(
                f"{pattern!r} matches frozen parameters only, such as {matched[0].names[0]}",
                where=place_of(locations, number, each),
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
