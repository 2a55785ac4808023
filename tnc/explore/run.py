"""The loop of a search: ask the strategy, look in the record, evaluate what is new, tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tnc.explore.engine import Pool, Task
from tnc.explore.problem import Problem
from tnc.explore.record import Record
from tnc.explore.strategy import Strategy
from tnc.explore.trial import Outcome, Scored, Trial


@dataclass(frozen=True)
class Limits:
    """When a search ends, besides by its strategy: what comes first.

    `evaluations` counts trials that this search had not asked before, from whatever run their
    outcome is; `patience` evaluations without a better score; a score of `target` or less;
    `seconds` from the first fit that was not on record, `spent` of which earlier processes had;
    they are looked at between rounds, and are the only limit that is not repeatable.
    `repeats` bounds rounds that only repeat themselves.
    """

    evaluations: int | None = None
    seconds: float | None = None
    target: float | None = None
    patience: int | None = None
    repeats: int = 200
    spent: float = 0.0


@dataclass
class Counts:
    """What a search has asked for, counted apart.

    `evaluations` distinct trials, of which `fitted` in this process; `hits` asked again or on
    record; `refused` without a fit; `interpolated` points that stand on no fit of their own;
    `failed` evaluations without metrics; `starts` of fits.
    """

    rounds: int = 0
    evaluations: int = 0
    fitted: int = 0
    hits: int = 0
    refused: int = 0
    interpolated: int = 0
    failed: int = 0
    starts: int = 0


@dataclass
class Found:
    """What a search found: its trials in order, without repetition, and how it ended.

    `seconds` are those of this process, `spent` those that count against the limit.
    """

    trials: list[Scored] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    ended: str = ""
    seconds: float = 0.0
    spent: float = 0.0

    @property
    def best(self) -> Scored | None:
        """The first of the trials with the best score, None when none has a finite one."""
        scored = [t for t in self.trials if t.score < float("inf")]
        return min(scored, key=lambda t: t.score, default=None)

    @property
    def front(self) -> tuple[Scored, ...]:
        """The trials at full effort that no other beats in both size and error, by size."""
        full = [t for t in self.trials if t.outcome.ok and t.trial.effort == 1.0]
        front: list[Scored] = []
        for told in sorted(full, key=lambda t: (t.outcome.metrics["ratio"], t.rse)):
            if not front or told.rse < front[-1].rse:
                front.append(told)
        return tuple(front)


Watch = Callable[[Found], None]


def search(
    problem: Problem,
    strategy: Strategy,
    pool: Pool,
    record: Record,
    limits: Limits,
    seed: int = 0,
    watch: Watch = lambda found: None,
) -> Found:
    """Run a search to one of its limits and return what it found.

    The trials depend on problem, strategy, seed and limits alone: not on workers, nor on what was
    on record before. `watch` is called after every round and after every evaluation.
    """
    found, begun = Found(), time.monotonic()
    asking = strategy.search(problem, Random(seed))
    told: dict[str, Scored] = {}
    idle, better, least = 0, 0, float("inf")
    try:
        batch = next(asking)
        working = begun
        while not found.ended:
            if not found.counts.fitted:
                working = time.monotonic()
            found.counts.rounds += 1
            found.counts.interpolated += batch.interpolated
            new = _new(problem, batch.trials, told, found.counts)
            left = None if limits.evaluations is None else limits.evaluations - len(found.trials)
            cut = left is not None and len(new) > left
            for scored in _evaluate(problem, new[:left], told, pool, record, found, watch):
                told[scored.trial.key] = scored
                found.trials.append(scored)
                if scored.score < least:
                    least, better = scored.score, len(found.trials)
            found.seconds = time.monotonic() - begun
            found.spent = limits.spent + time.monotonic() - working
            idle = 0 if new else idle + 1
            if limits.target is not None and least <= limits.target:
                found.ended = f"reached {limits.target:g}"
            elif cut or (left is not None and len(new) == left):
                found.ended = f"{limits.evaluations} evaluations"
            elif limits.patience is not None and len(found.trials) - better >= limits.patience:
                found.ended = f"{limits.patience} evaluations without a better score"
            elif (
                limits.seconds is not None and found.counts.fitted and found.spent >= limits.seconds
            ):
                found.ended = f"{limits.seconds:g} seconds"
            elif idle >= limits.repeats:
                found.ended = f"{limits.repeats} rounds without a new candidate"
            watch(found)
            if not found.ended:
                batch = asking.send(tuple(_told(problem, t, told) for t in batch.trials))
    except StopIteration as end:
        found.ended = end.value or "the strategy has nothing more to ask"
    found.seconds = time.monotonic() - begun
    return found


def _new(
    problem: Problem, trials: tuple[Trial, ...], told: dict[str, Scored], counts: Counts
) -> list[Trial]:
    """Return what is asked for the first time and not refused, in order."""
    new: dict[str, Trial] = {}
    for trial in trials:
        if trial.key in told or trial.key in new:
            counts.hits += 1
        elif problem.space.refuses(trial.topology):
            counts.refused += 1
        else:
            new[trial.key] = trial
    return list(new.values())


def _evaluate(
    problem: Problem,
    trials: list[Trial],
    told: dict[str, Scored],
    pool: Pool,
    record: Record,
    found: Found,
    watch: Watch,
) -> list[Scored]:
    """Return the outcomes in order, from the record or from workers."""
    counts = found.counts
    missing = [k for k, trial in enumerate(trials) if record.outcome(trial.key) is None]
    counts.evaluations += len(trials)
    counts.hits += len(trials) - len(missing)
    tasks = [_task(trials[k], told, record) for k in missing]
    for number, (outcome, cores) in pool.run(tasks):
        record.write(tasks[number].trial, outcome, cores)
        counts.fitted += 1
        watch(found)
    scored = []
    for trial in trials:
        known = record.outcome(trial.key)
        assert known is not None  # it was just written
        counts.failed += not known.ok
        counts.starts += int(known.metrics.get("starts", 0))
        scored.append(problem.scored(trial, known))
    return scored


def _task(trial: Trial, told: dict[str, Scored], record: Record) -> Task:
    """Return the work of a trial, with the cores of the trial that it starts from if it has any."""
    if trial.start not in told:
        return Task(trial)
    return Task(trial, record.cores(trial.start), told[trial.start].trial.topology)


def _told(problem: Problem, trial: Trial, told: dict[str, Scored]) -> Scored:
    """Return what became of a trial, at the point at which it was asked this time."""
    known = told.get(trial.key)
    if known is not None:
        return Scored(trial, known.outcome, known.score)
    why = problem.space.refuses(trial.topology)
    return Scored(trial, Outcome(error=why, refused=True), float("inf"))
