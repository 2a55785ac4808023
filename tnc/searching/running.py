"""Run a search: from a spec to what was found, in memory or in a folder that survives kills."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

from tnc.errors import Interrupted, SearchError
from tnc.explore import FitTopology, Found, Problem, Rank, Scored, Space, Spectra
from tnc.explore import search as explore
from tnc.explore.evaluator import Array
from tnc.explore.record_sqlite import SqliteRecord, reading
from tnc.explore.waiting import Waiting
from tnc.interrupts import deferred
from tnc.searching.folder import RunFolder
from tnc.searching.result import Result
from tnc.searching.spec import Search, SearchSpec
from tnc.searching.target import Given, Target

Watch = Callable[[Found], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A search that was checked against its target: the problem, and the work for the workers."""

    spec: SearchSpec
    problem: Problem
    work: FitTopology


def prepare(spec: SearchSpec) -> Prepared:
    """Load the target and build the problem. Raises SpecProblems for a spec that does not fit."""
    search = spec.search
    search.engine.check()
    tensor = search.target.load()
    spectra = Spectra.of(tensor)
    problem = Problem(_space(spec, tensor), search.objective, spectra)
    why = search.strategy.refuses(problem)
    if why:
        raise spec.wrong("strategy", f"this strategy cannot search here: {why}")
    return Prepared(spec, problem, FitTopology(tensor, search.evaluator, spectra, search.seed))


def in_memory(prepared: Prepared, watch: Watch = lambda found: None) -> Result:
    """Search without a folder; `Result.save` writes one."""
    record = SqliteRecord.open(":memory:", prepared.work.digest, "memory")
    found = _searched(prepared, record, 0.0, watch)
    return Result(found, record, prepared.spec)


def begin(
    prepared: Prepared,
    path: Path,
    record: Path | None = None,
    watch: Watch = lambda found: None,
    tell: Tell = lambda text: None,
) -> Result:
    """Search in a new folder; `record` is a file that runs share. Raises Interrupted."""
    if record is not None and record.exists():
        SqliteRecord.open(record, prepared.work.digest).close()
    search = prepared.spec.search
    spec = SearchSpec(search.model_copy(update={"target": search.target.resolved()}))
    folder = RunFolder.create(path, spec, prepared.work.digest, record)
    return _run(prepared, folder, watch, tell)


def resume(
    folder: RunFolder,
    overrides: tuple[str, ...] = (),
    watch: Watch = lambda found: None,
    tell: Tell = lambda text: None,
    retry: bool = False,
) -> Result:
    """Go on with a run that was ended; one that came to its end needs other limits to go on.

    What is on record is not evaluated again: the strategy is asked anew, and told it. `retry`
    takes off the record first what hung or killed its workers. `overrides` may change limits and
    engine. Raises SearchError, Interrupted.
    """
    spec = folder.spec(overrides)
    _check_same(folder, spec, overrides)
    if not overrides and not retry and ended(folder):
        return load(folder)
    prepared = prepare(spec)
    if prepared.work.digest != folder.about["work"]:
        raise SearchError(
            f"the target or the evaluator is another one than when {folder.path} was begun",
            hint="begin a new run: what is on record there does not hold for it",
        )
    return _run(prepared, folder, watch, tell, retry)


def ended(folder: RunFolder) -> str:
    """Return why a run came to its end, empty when it can go on."""
    events = folder.events()
    return str(events[-1].get("ended", "")) if events else ""


def load(folder: RunFolder) -> Result:
    """Read what a run has found so far, also while it is going on; nothing is written."""
    spec = folder.spec()
    objective = spec.search.objective
    events = folder.events()
    rounds = [event for event in events if event.get("event") == "round"]
    found = Found(ended=ended(folder))
    if rounds:
        counts = [event["counts"] for event in events if "counts" in event]
        for name, value in counts[-1].items():
            setattr(found.counts, name, value)
        found.spent = rounds[-1]["spent"]
    if not folder.record.exists():
        return Result(found, None, spec)
    record = reading(folder.record, folder.about["work"], folder.about["id"])
    asked = [key for event in rounds for key in event["asked"]]
    for trial, outcome in record.rows(asked):
        score = objective.score(outcome.metrics) if outcome.ok else float("inf")
        found.trials.append(Scored(trial, outcome, score if score == score else float("inf")))
    found.counts.evaluations, found.counts.fitted = len(found.trials), record.written
    return Result(found, record, spec)


def _run(
    prepared: Prepared, folder: RunFolder, watch: Watch, tell: Tell, retry: bool = False
) -> Result:
    waiting = Waiting(tell, resume=folder.resume)
    with folder.alone(), _resumable(folder, tell) as stopped:
        record = SqliteRecord.open(folder.record, prepared.work.digest, folder.about["id"], waiting)
        if retry:
            tell(f"{record.forget_lost()} candidates without an answer are evaluated again")
        log = _Log(folder, waiting, watch, stopped)
        folder.log(waiting, "begin")
        found = _searched(prepared, record, log.spent, log)
        folder.log(waiting, "end", ended=found.ended, counts=asdict(found.counts))
    return Result(found, record, prepared.spec)


def _searched(prepared: Prepared, record: SqliteRecord, spent: float, watch: Watch) -> Found:
    """Search; what the evaluator compiles is compiled here first, so that workers find it."""
    search = prepared.spec.search
    prepared.work.warm()
    with search.engine.open(prepared.work) as pool:
        return explore(
            prepared.problem,
            search.strategy,
            pool,
            record,
            search.limits.limits(spent),
            search.seed,
            watch,
        )


class _Log:
    """Write rounds down as they end, those of earlier processes not again; stop when told to."""

    def __init__(
        self, folder: RunFolder, waiting: Waiting, watch: Watch, stopped: Callable[[], bool]
    ) -> None:
        self._folder, self._waiting, self._watch = folder, waiting, watch
        self._stopped = stopped
        rounds = [event for event in folder.events() if event.get("event") == "round"]
        self._known = {key for event in rounds for key in event["asked"]}
        self._told = 0
        self.spent = float(rounds[-1]["spent"]) if rounds else 0.0

    def __call__(self, found: Found) -> None:
        if len(found.trials) == found.counts.evaluations > self._told:
            self._round(found)
        self._watch(found)
        if self._stopped():
            raise KeyboardInterrupt

    def _round(self, found: Found) -> None:
        asked = [told.trial.key for told in found.trials[self._told :]]
        self._told = len(found.trials)
        new = [key for key in asked if key not in self._known]
        if not new:
            return
        best = found.best
        self._known.update(new)
        self._folder.log(
            self._waiting,
            "round",
            round=found.counts.rounds,
            asked=new,
            counts=asdict(found.counts),
            best=None if best is None else {"score": best.score, "key": best.trial.key},
            spent=round(found.spent, 3),
        )


@contextmanager
def _resumable(folder: RunFolder, tell: Tell) -> Iterator[Callable[[], bool]]:
    """Let a signal wait for the evaluation that ends next, and say how the run goes on.

    It is told from a thread of its own: a signal may come in the middle of another line.
    """
    said = Thread(target=tell, args=("stopping after the next evaluation; again to stop at once",))
    try:
        with deferred(said.start) as stopped:
            yield stopped
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what was evaluated is on record",
            where=str(folder.path),
            hint=folder.resume,
        ) from None


def _check_same(folder: RunFolder, spec: SearchSpec, overrides: tuple[str, ...]) -> None:
    """Refuse overrides of anything but limits and engine: they would make it another search."""
    was, now = (each.to_data()["search"] for each in (folder.spec(), spec))
    changed = sorted(
        name for name in {*was, *now} - {"limits", "engine"} if was.get(name) != now.get(name)
    )
    if changed:
        raise SearchError(
            f"a run that goes on keeps its {' and '.join(changed)}",
            where=f"--set {' '.join(overrides)}",
            hint="limits and engine may change; begin a new run for the rest",
        )


def _space(spec: SearchSpec, tensor: Array) -> Space:
    """Build the space on the modes of a tensor; an error is told at the part of the spec."""
    part = spec.search.space
    try:
        space = Space.of(tensor.shape, **part.model_dump())
        order = Random(0)
        space.topology(tuple(a.high if isinstance(a, Rank) else a.draw(order) for a in space.axes))
    except SearchError as error:
        told = "; ".join(filter(None, (error.message, error.hint)))
        raise spec.wrong("space", told) from error
    return space


def given(tensor: Any, **parts: Any) -> SearchSpec:
    """Return the search of a tensor in memory, or of a target as a spec writes it."""
    if not isinstance(tensor, Target | Mapping):
        tensor = tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor
        tensor = Given(tensor)
    return SearchSpec(Search.of(target=tensor, **{k: v for k, v in parts.items() if v is not None}))
