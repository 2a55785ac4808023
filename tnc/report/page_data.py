"""The data behind a report's page: plain numbers and texts, also what `--json` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from shlex import quote
from typing import Any

from tnc.decide.background import thinned
from tnc.decide.plan import Entry, Plan
from tnc.derive.draw import draw_svg
from tnc.net import Signature
from tnc.report.findings import budget_rows, differences, gate_of, warnings_of
from tnc.report.subject import Reported

VERSION = 1
DRAWN = 300
"""Distinct structures that are drawn into a page; `tnc draw` draws any."""

POINTS = 20_000
"""Points of all curves of a run together, but not fewer than `FEWEST` on each."""

FEWEST = 6
DENSE = "dense"


def page_data(reported: Sequence[Reported]) -> dict[str, Any]:
    """Return everything that a page shows about one or several runs."""
    drawings = _Drawings()
    runs = [_run(one, drawings) for one in reported]
    data = {
        "version": VERSION,
        "kind": "report",
        "runs": runs,
        "differences": list(differences(reported)),
        "drawings": drawings.made,
    }
    return finite(data)  # type: ignore[no-any-return]


class _Drawings:
    """Drawings by the structure that they show, each made once."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self._place: dict[str, int] = {}

    def of(self, entry: Entry) -> int:
        """Return the place of the entry's drawing, -1 where there is none."""
        if entry.structure is None:
            return -1
        key = str(entry.structure)
        if key not in self._place:
            if len(self.made) >= DRAWN:
                return -1
            self._place[key] = len(self.made)
            self.made.append([draw_svg(term) for term in entry.structure.terms])
        return self._place[key]


def _run(one: Reported, drawings: _Drawings) -> dict[str, Any]:
    plan, metrics = replace(one.plan, entries=in_order(one.plan)), one.metrics
    kinds = {part.name: part.kind for part in plan.background.parts}
    return {
        "name": one.name,
        "place": one.place,
        "artifact": one.artifact,
        "source": dict(one.source or {}),
        "digest": plan.digest,
        "seed": plan.seed,
        "passes": list(plan.passes),
        "objective": plan.objective,
        "total": vars(plan.total),
        "scope": vars(plan.scope),
        "size": {side: metrics[side] for side in ("before", "after") if side in metrics},
        "budgets": budget_rows(plan),
        "timings": list(metrics.get("timings", ())),
        "figures": list(dict(metrics.get("figures", {})).items()),
        "gate": gate_of(one.spec),
        "held_out": metrics.get("held_out", 0),
        "seconds": list(dict(metrics.get("seconds", {})).items()),
        "layers": [_layer(entry, kinds, drawings) for entry in plan.entries],
        "skips": [[skip.site, skip.reason] for skip in plan.skips],
        "notes": list(plan.notes),
        "warnings": list(warnings_of(one)),
        "curves": _curves(plan),
        "resource": plan.background.resource,
        "frontier": [list(point) for point in plan.background.frontier],
        "chosen": chosen_point(plan),
        "strip": strip(plan),
        "spec": one.spec,
        "environment": list({**one.versions, **metrics.get("environment", {})}.items()),
        "command": command(one),
    }


def in_order(plan: Plan) -> tuple[Entry, ...]:
    """Return the entries in the order of execution; by name, numbers as numbers, where unknown."""
    places = {part.name: place for place, part in enumerate(plan.background.parts)}

    def key(entry: Entry) -> tuple[Any, ...]:
        words = re.split(r"(\d+)", entry.site)
        natural = [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in words]
        return places.get(entry.members[0].rpartition(".")[0], len(places)), natural

    return tuple(sorted(plan.entries, key=key))


def _layer(entry: Entry, kinds: Mapping[str, str], drawings: _Drawings) -> dict[str, Any]:
    module = entry.members[0].rpartition(".")[0]
    terms = entry.structure.terms if entry.structure else ()
    return {
        "site": entry.site,
        "members": len(entry.members),
        "pattern": pattern(entry.site),
        "was": " ".join(filter(None, (kinds.get(module, ""), _shape(entry)))) or DENSE,
        "family": entry.family if terms else DENSE,
        "ranks": " ".join(
            f"{name}={dict(term.sizes)[name]}" for term in terms for name in term.equation.bonds
        ),
        "equations": [str(term) for term in terms],
        "drawing": drawings.of(entry),
        "params": [entry.dense_params, entry.params],
        "flops": [entry.dense_flops, entry.flops],
        "error": entry.error,
        "relative": entry.relative,
        "fit": entry.fit,
        "metric": entry.metric,
        "reason": entry.reason,
        "rule": entry.rule,
    }


def _shape(entry: Entry) -> str:
    if entry.structure is None:
        return ""
    signature: Signature = entry.structure.signature
    sides = ("×".join(map(str, side)) for side in (signature.inputs, signature.outputs))
    return " → ".join(sides)


def _curves(plan: Plan) -> list[dict[str, Any]]:
    """Return the curves of the plan's layers, thinned where there are many."""
    places = {entry.site: place for place, entry in enumerate(plan.entries)}
    curves = [curve for curve in plan.background.curves if curve.site in places]
    most = max(FEWEST, POINTS // max(1, len(curves)))
    return [
        {
            "layer": places[curve.site],
            "family": curve.family,
            "ranks": list(curve.ranks),
            "points": [list(point) for point in thinned(curve.points, most)],
        }
        for curve in curves
    ]


def pattern(site: str) -> str:
    """Return a name with its numbers replaced, equal for the same layer of repeated blocks.

    >>> pattern("encoder.layer.11.query.weight")
    'encoder.layer.*.query.weight'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", site)


def chosen_point(plan: Plan) -> list[float] | None:
    """Return (resource used in scope, predicted error) of the plan; None where it is unknown."""
    resource = plan.background.resource
    if resource not in ("params", "flops") or not plan.entries:
        return None
    errors = [entry.error for entry in plan.entries if entry.error is not None]
    if len(errors) < len(plan.entries):
        return None
    error = max(errors) if plan.objective == "max" else sum(errors)
    return [float(getattr(plan.scope, resource)), error]


def strip(plan: Plan) -> list[list[Any]]:
    """Return the model's modules in the order of execution, for one strip of boxes.

    Each is [name, class, place of its layer or -1, parameters before, after, FLOPs before, after].
    Where a plan holds no module list its own entries are all there is.
    """
    places = {
        member.rpartition(".")[0]: place
        for place, entry in enumerate(plan.entries)
        for member in entry.members
    }
    shown: set[int] = set()
    rows: list[list[Any]] = []
    for part in plan.background.parts:
        place = places.get(part.name, -1)
        change = [0, 0]
        if place >= 0 and place not in shown:
            entry = plan.entries[place]
            change = [entry.params - entry.dense_params, entry.flops - entry.dense_flops]
            shown.add(place)
        params, flops = part.params, part.flops
        rows.append([part.name, part.kind, place, params, params + change[0], flops,
                     flops + change[1]])  # fmt: skip
    for place, entry in enumerate(plan.entries):
        if place not in shown:
            rows.append([entry.site, "", place, entry.dense_params, entry.params,
                         entry.dense_flops, entry.flops])  # fmt: skip
    return rows


def command(one: Reported) -> str:
    """Return the command that makes the artifact again."""
    place = one.place.rstrip("/")
    if not one.artifact:
        return f"tnc compile SPEC --plan {quote(place)} --out DIR"
    if not one.spec:
        return f"tnc.compile(model, spec, plan=tnc.Plan.read({place + '/plan.json'!r}))"
    return f"tnc compile {quote(place)}/spec.yaml --plan {quote(place)}/plan.json --out DIR"


def finite(data: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot hold, by None."""
    if isinstance(data, float):
        return data if isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data


def as_script(data: Mapping[str, Any]) -> str:
    r"""Write data as JSON that no HTML parser can take for markup.

    >>> as_script({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
