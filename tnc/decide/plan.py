"""Plans: the complete decision about a model, without weights.

A plan is immutable, printable and comparable; it replays on any checkpoint whose fingerprint it
carries, and needs no torch to be read, checked or compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tnc.decide.background import Background, read_background
from tnc.decide.grouping import GroupCount
from tnc.decide.plan_fields import check_fields
from tnc.errors import EquationError, PlanError
from tnc.net import Structure, digest, from_json, to_json

VERSION = 1
_AGAIN = "`tnc plan SPEC --out FILE` makes one"


@dataclass(frozen=True)
class Entry:
    """The decision about one site (or several that share input factors: `members`).

    `structure` is None where the weight stays dense. `error` is the predicted error in the unit of
    the plan's objective; `relative` the predicted relative error of the
    weight in the norm of its metric (for 'inputs' that is the layer's output). Both are None where
    they are not known: adapters were merged into the weight since.
    `members` are the sites, in order of their rows in the stacked weight; one name for most.
    """

    site: str
    members: tuple[str, ...]
    structure: Structure | None
    fit: str
    family: str
    metric: str
    error: float | None
    relative: float | None
    params: int
    dense_params: int
    flops: int
    dense_flops: int
    reason: str
    rule: str

    @property
    def kept(self) -> bool:
        """Whether the weight stays dense."""
        return self.structure is None


@dataclass(frozen=True)
class Skip:
    """A weight, or a piece of the model, that is left alone, and why."""

    site: str
    reason: str


@dataclass(frozen=True)
class Total:
    """Sums over the model: parameters and FLOPs of the example input."""

    params: int
    dense_params: int
    flops: int
    dense_flops: int


@dataclass(frozen=True)
class Plan:
    """Everything that was decided: what each site becomes, what is skipped, by which passes."""

    fingerprint: str
    seed: int
    entries: tuple[Entry, ...]
    skips: tuple[Skip, ...]
    passes: tuple[str, ...]
    budgets: tuple[tuple[str, float], ...]
    objective: str
    total: Total
    scope: Total
    notes: tuple[str, ...] = ()
    spec: str = ""
    version: int = VERSION
    measured: tuple[tuple[str, float], ...] = field(default=(), compare=False)
    background: Background = field(default=Background(), compare=False, repr=False)
    optimizer: tuple[GroupCount, ...] = field(default=(), compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was decided: not of timings, estimates, explanations, or training."""
        data = replace(self, background=Background()).to_json()
        for told in ("digest", "measured", "notes", "background", "optimizer"):
            data.pop(told, None)
        for entry in (*data["entries"], *data["skips"]):
            for estimate in ("reason", "error", "relative"):
                entry.pop(estimate, None)
            entry.pop("rule", None)
        return digest(_rounded(data))

    def entry(self, site: str) -> Entry:
        """Return the decision about a site. Raises PlanError."""
        for entry in self.entries:
            if site == entry.site or site in entry.members:
                return entry
        raise PlanError(
            f"the plan has no site {site!r}",
            hint="`tnc plan` prints the sites; skipped ones are listed with their reasons",
        )

    def to_json(self) -> dict[str, Any]:
        """Write the plan as plain data; `Plan.from_json` reads it back."""
        data = asdict(replace(self, entries=()))
        data["entries"] = [
            {**_plain(entry), "structure": to_json(entry.structure) if entry.structure else None}
            for entry in self.entries
        ]
        data["digest"] = ""
        return json.loads(json.dumps(data))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan. Raises PlanError for another version or a changed digest."""
        if not isinstance(data, Mapping):
            raise PlanError(f"not a plan: a {type(data).__name__}", hint=_AGAIN)
        if data.get("version") != VERSION:
            raise PlanError(
                f"plan version {data.get('version')!r} is not {VERSION}",
                hint="make the plan again with this version of tnc",
            )
        try:
            _check(data)
            plan = _read(data)
        except PlanError as error:
            error.hint = error.hint or _AGAIN
            raise
        except (KeyError, TypeError, ValueError, EquationError) as error:
            raise PlanError(f"not a plan: {error!r}", hint=_AGAIN) from error
        if data.get("digest") and data["digest"] != plan.digest:
            raise PlanError(
                "the plan does not match its digest: it was edited or damaged",
                hint="make it again, or remove the 'digest' entry to accept the edit",
            )
        return plan

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, with its digest, in one step. Raises PlanError."""
        from tnc.files import write_text, writing

        with writing(Path(path), PlanError):
            write_text(Path(path), json.dumps(self.to_json() | {"digest": self.digest}, indent=1))

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Read a plan file. Raises PlanError with the file's name."""
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except PlanError as error:
            error.where = error.where or str(path)
            raise
        except OSError as error:
            told = error.strerror or str(error)
            raise PlanError(
                f"cannot read the plan: {told}", where=str(path), hint=_AGAIN
            ) from error
        except ValueError as error:
            told = f"cannot read the plan: not JSON: {error}"
            raise PlanError(told, where=str(path), hint=_AGAIN) from error

    def explain(self, site: str) -> str:
        """Say what was decided about a site, why, and by which line of the spec."""
        entry = self.entry(site)
        what = "stays dense" if entry.structure is None else f"becomes {entry.structure}"
        lines = [
            f"{entry.site} {what}",
            f"  {entry.dense_params:,} -> {entry.params:,} parameters, "
            f"{entry.dense_flops:,} -> {entry.flops:,} FLOPs",
            f"  because {entry.reason}",
            f"  by {entry.rule}",
        ]
        if entry.structure is not None:
            lines.insert(
                2,
                f"  fitted by {entry.fit} in the {entry.metric} metric, predicted relative error "
                + ("not known" if entry.relative is None else f"there {entry.relative:.3g}"),
            )
        return "\n".join(lines)

    def diff(self, other: Plan) -> tuple[str, ...]:
        """Return one line for every site that the two plans treat differently."""
        mine = {entry.site: entry for entry in self.entries}
        theirs = {entry.site: entry for entry in other.entries}
        lines = []
        for site in sorted({*mine, *theirs}):
            before, after = mine.get(site), theirs.get(site)
            told = [_short(entry) for entry in (before, after)]
            if told[0] != told[1]:
                lines.append(f"{site}: {told[0]} -> {told[1]}")
        return tuple(lines)


def _plain(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__dataclass_fields__}


def _short(entry: Entry | None) -> str:
    if entry is None:
        return "absent"
    return "dense" if entry.structure is None else f"{entry.structure} ({entry.params:,})"


def _check(data: Mapping[str, Any]) -> None:
    """Raise PlanError for a field of another type, and for a site that is there twice."""
    check_fields(Plan, data)
    for kind, name in ((Entry, "entries"), (Skip, "skips"), (GroupCount, "optimizer")):
        for number, item in enumerate(data.get(name, ())):
            check_fields(kind, item, f"{name}.{number}")
    for name in ("total", "scope"):
        check_fields(Total, data[name], name)
    members = [member for entry in data["entries"] for member in entry["members"]]
    twice = sorted({name for name in members if members.count(name) > 1})
    if twice:
        raise PlanError(f"not a plan: it decides about {twice[0]!r} more than once")


def _read(data: Mapping[str, Any]) -> Plan:
    later = ("background", "optimizer")
    fields = {name: data[name] for name in Plan.__dataclass_fields__ if name not in later}
    fields["optimizer"] = tuple(GroupCount(**group) for group in data.get("optimizer", ()))
    fields["background"] = read_background(data.get("background"))
    fields["entries"] = tuple(
        Entry(
            **{
                **entry,
                "members": tuple(entry["members"]),
                "structure": from_json(entry["structure"]) if entry["structure"] else None,
            }
        )
        for entry in data["entries"]
    )
    fields["skips"] = tuple(Skip(**skip) for skip in data["skips"])
    for name in ("total", "scope"):
        fields[name] = Total(**data[name])
    for name in ("passes", "notes"):
        fields[name] = tuple(data[name])
    for name in ("budgets", "measured"):
        fields[name] = tuple((key, value) for key, value in data[name])
    return Plan(**fields)


def _rounded(data: Any) -> Any:
    """Round floats to six significant digits: thread counts change the last ones."""
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_rounded(value) for value in data]
    return data
