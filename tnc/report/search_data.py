"""The data behind a search's page: plain numbers and texts, also what `--json` prints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from tnc.derive.draw import draw_svg
from tnc.errors import SearchError
from tnc.explore import Scored, Space, size_of
from tnc.net import print_network
from tnc.report.page_data import finite
from tnc.searching.folder import RUN, RunFolder
from tnc.searching.result import Candidate, Result
from tnc.searching.running import load

VERSION = 1
DRAWN, COLUMNS, POINTS = 6, 24, 4000
"""Networks that are drawn, columns of the heat map, evaluations that are charted."""

EXACT = 1e-12
"""Squared relative errors below this are rounding."""

_COUNTED = 20_000
_MEANING = {
    "evaluations": "distinct candidates that were asked for: failed ones, quick looks and joint "
    "fits too",
    "fitted": "of them fitted by this run; the others were on record, fitted by another",
    "hits": "candidates that needed no fit: asked for again, or on record",
    "refused": "not fitted: outside of the space's limits; no evaluation",
    "interpolated": "points judged by a line between two fits; no evaluation, never the result",
    "failed": "evaluations without an error figure; each counts, its score is as bad as can be",
    "starts": "fits from their beginnings: an evaluation is the best of several",
    "rounds": "times that the strategy was asked",
}


def is_search(place: str | Path) -> bool:
    """Return whether a place is the folder of a search."""
    return (Path(place) / RUN).is_file()


def search_data(place: str | Path) -> dict[str, Any]:
    """Return everything that the page of a search shows. Raises SearchError."""
    folder = RunFolder.open(Path(place))
    result, live = load(folder), folder.live
    trials = result.found.trials
    if not any(told.score < float("inf") for told in trials):
        raise SearchError(
            f"the search {place} has nothing to report yet: {len(trials)} evaluations, none with "
            "a score",
            hint=f"tnc search status {place}",
        )
    ranked = result.ranked(COLUMNS)
    number = {told.trial.key: count for count, told in enumerate(trials, 1)}
    events = folder.events()
    search = result.spec.to_data()["search"]
    state = "running" if live else "ended" if result.ended else "interrupted"
    return finite(  # type: ignore[no-any-return]
        {
            "version": VERSION,
            "kind": "search-report",
            "name": folder.path.resolve().name,
            "place": str(place),
            "state": state,
            "ended": result.ended,
            "warnings": list(_warnings(result, state)),
            "modes": list(ranked[0].topology.modes),
            "dense": ranked[0].topology.dense,
            "space": _space(result, ranked[0]),
            "parts": [[name, _flow(search[name])] for name in
                      ("target", "space", "objective", "strategy", "evaluator", "engine", "limits",
                       "seed")],
            "counts": [[name, getattr(result.counts, name), told]
                       for name, told in _MEANING.items()],
            "spent": result.found.spent,
            "processes": sum(event.get("event") == "begin" for event in events),
            "trials": [_point(told, number) for told in _shown(trials)],
            "curve": _curve(trials),
            "front": [number[told.trial.key] for told in _front(result)],
            "networks": [_network(each, number) for each in ranked[:DRAWN]],
            "heat": _heat(ranked, number),
            "failures": Counter(
                told.outcome.error for told in trials if not told.outcome.ok
            ).most_common(20),
            "spec": result.spec.text,
            "environment": [*folder.about["environment"].items(),
                            ("begun", folder.about["created"]), ("work", folder.about["work"])],
            "command": f"tnc search run {quote(f'{folder.path}/{RUN}')} --out DIR",
        }
    )  # fmt: skip


def _warnings(result: Result, state: str) -> Iterator[str]:
    counts, found = result.counts, result.found
    if state == "running":
        yield "The search is still running: this is what it had found when the page was written."
    if state == "interrupted":
        yield "The search was interrupted, it can go on: `tnc search resume`."
    if counts.failed:
        yield f"{counts.failed} of {counts.evaluations} evaluations failed; the reasons are below."
    looks = sum(told.trial.effort < 1.0 or told.trial.gates > 0 for told in found.trials)
    if looks:
        yield f"{looks} evaluations were quick looks or joint fits; the front leaves them out."
    best = found.best
    if best and best.trial.effort < 1.0:
        yield "The best score is of a quick look, not of a full fit."
    if result.ended.endswith(" seconds"):
        yield "It ended by its time: another machine gets another number of evaluations."


def _space(result: Result, candidate: Candidate) -> str:
    space = Space.of(candidate.topology.modes, **result.spec.search.space.model_dump())
    return re.sub(r"\d+", lambda found: f"{int(found[0]):,}", str(size_of(space, _COUNTED)))


def _flow(value: Any) -> str:
    """Write a part of a spec on one line.

    >>> _flow({"kind": "tnale", "radius": 1}), _flow({"bonds": [[0, 1]], "rank": 2}), _flow(3)
    ('tnale{radius: 1}', 'bonds: [[0, 1]], rank: 2', '3')
    """
    if not isinstance(value, dict):
        return str(value)
    told = ", ".join(f"{name}: {each}" for name, each in value.items() if name != "kind")
    return f"{value['kind']}{{{told}}}" if "kind" in value else told


def _shown(trials: Sequence[Scored]) -> list[Scored]:
    """Return the trials that are charted: all, or the best and every so many of the others."""
    if len(trials) <= POINTS:
        return list(trials)
    step = 2 * len(trials) // POINTS + 1
    best = sorted(range(len(trials)), key=lambda k: trials[k].score)[: POINTS // 2]
    return [trials[k] for k in sorted({*range(0, len(trials), step), *best})]


def _point(told: Scored, number: dict[str, int]) -> list[Any]:
    """Return number, score, error, ratio, parameters, effort, seconds, topology."""
    metrics, trial = told.outcome.metrics, told.trial
    return [
        number[trial.key],
        told.score,
        metrics.get("rse"),
        metrics.get("ratio", trial.topology.ratio),
        trial.topology.parameters,
        0.0 if trial.gates else trial.effort,
        told.outcome.seconds,
        str(trial.topology),
    ]


def _front(result: Result) -> list[Scored]:
    """Return the front up to the smallest network that is exact: beyond it errors are rounding."""
    front = list(result.found.front)
    exact = next((k for k, told in enumerate(front) if told.rse < EXACT), len(front))
    return front[: exact + 1]


def _curve(trials: Sequence[Scored]) -> list[list[float]]:
    """Return [evaluation, score] wherever the best so far became better, and at the end."""
    found: list[list[float]] = []
    for count, told in enumerate(trials, 1):
        if told.score < (found[-1][1] if found else float("inf")):
            found.append([count, told.score])
    return [*found, [len(trials), found[-1][1]]]


def _network(candidate: Candidate, number: dict[str, int]) -> dict[str, Any]:
    topology, trial = candidate.topology, candidate.scored.trial
    return {
        "number": number[trial.key],
        "score": candidate.score,
        "rse": candidate.scored.rse,
        "params": topology.parameters,
        "ratio": topology.ratio,
        "topology": str(topology),
        "network": print_network(candidate.network),
        "drawing": draw_svg(candidate.network, named=False),
    }


def _heat(ranked: Sequence[Candidate], number: dict[str, int]) -> dict[str, Any]:
    """Return bonds, as pairs of cores, and their sizes in every one of the best, 1 for none."""
    sizes = [{(a, b): size for a, b, size in each.topology.bonds} for each in ranked]
    pairs = sorted({pair for each in sizes for pair in each})
    return {
        "bonds": [f"G{a + 1}–G{b + 1}" for a, b in pairs],
        "numbers": [number[each.scored.trial.key] for each in ranked],
        "scores": [each.score for each in ranked],
        "sizes": [[each.get(pair, 1) for pair in pairs] for each in sizes],
    }
