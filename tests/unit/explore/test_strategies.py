"""Laws of search strategies, over all that are registered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.elsewhere import elsewhere
from tnc.explore import (
    Batch,
    Evaluator,
    Fit,
    FitTopology,
    Found,
    Limits,
    MemoryRecord,
    Outcome,
    Pool,
    Problem,
    Scored,
    Space,
    Spectra,
    Strategy,
    Task,
    Topology,
    Trial,
    engines,
    objectives,
    propose,
    search,
    strategies,
)
from tnc.explore.counting import candidates, size_of
from tnc.explore.engine import Done, Work
from tnc.explore.trial import Asking

NAMES = tuple(strategies.all())
MOST_REFUSED = 100
OBJECTIVE = objectives.get("size-and-error")(20.0)


def networked(modes: tuple[int, ...], bonds: Sequence[tuple[int, int, int]], hidden: int = 0):
    """Return a random tensor that a topology represents exactly."""
    topology = Topology.of(modes, bonds, hidden)
    rng = np.random.default_rng(7)
    operands: list[object] = []
    for v, (shape, legs) in enumerate(zip(topology.shapes, topology.legs)):
        mode = [v] if v < len(modes) else []
        operands += [rng.standard_normal(shape), [*mode, *(len(modes) + k for k in legs)]]
    return np.einsum(*operands, list(range(len(modes))))


RING = networked((3, 3, 3), [(0, 1, 2), (1, 2, 2)])
STAR = networked((3, 3, 3), [(0, 3, 2), (1, 3, 2), (2, 3, 3)], 1)
TENSORS = {"ring": RING, "star": STAR}


@cache
def problem(bonds: str, **constraints: int) -> Problem:
    tensor = TENSORS[bonds]
    space = Space.of(tensor.shape, bonds, 3, **constraints)
    return Problem(space, OBJECTIVE, Spectra.of(tensor))


@cache
def answer(bonds: str, trial: Trial) -> Outcome:
    """Take the bound of a candidate for its fit, which costs nothing; gates are fitted."""
    if trial.gates:
        return FitTopology(TENSORS[bonds], Unused())(Task(trial))[0]
    spectra, topology = problem(bonds).spectra, trial.topology
    assert spectra is not None
    metrics = {"rse": spectra.floor(topology), "ratio": topology.ratio}
    return Outcome({**metrics, "params": topology.parameters})


def work(bonds: str) -> Work:
    return lambda task: (answer(bonds, replace(task.trial, start="")), None)


@dataclass(frozen=True)
class Unused(Evaluator):
    """Nothing here is fitted but gates."""

    def fit(self, *given: object, **options: object) -> Fit:
        raise AssertionError


def space_of(strategy: Strategy) -> str:
    """Return the first space that a strategy does not refuse."""
    return next(bonds for bonds in TENSORS if not strategy.refuses(problem(bonds)))


@dataclass
class Backwards(Pool):
    """Workers that answer the last task first."""

    work: Work

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
        for number in reversed(range(len(tasks))):
            yield number, self.work(tasks[number])

    def close(self) -> None:
        """There is nothing to stop."""


def run(strategy: Strategy, evaluations: int, backwards: bool = False) -> Found:
    bonds = space_of(strategy)
    pool = Backwards(work(bonds)) if backwards else engines.get("serial")().open(work(bonds))
    limits = Limits(evaluations=evaluations)
    return search(problem(bonds), strategy, pool, MemoryRecord(), limits)


def keys(found: Found) -> list[tuple[str, float]]:
    return [(told.trial.key, told.score) for told in found.trials]


def rounds(strategy: Strategy, asked: Problem, seed: int, count: int):
    """Drive a strategy by hand; return its batches, what it was told, and its end."""
    asking = strategy.search(asked, Random(seed))
    batches: list[Batch] = []
    history: list[tuple[Scored, ...]] = []
    try:
        batch = next(asking)
        while len(batches) < count:
            batches.append(batch)
            history.append(tuple(answered(asked, trial) for trial in batch.trials))
            batch = asking.send(history[-1])
    except StopIteration as end:
        return batches, history, end.value
    return batches, history, None


def answered(asked: Problem, trial) -> Scored:
    """Return a trial with what a search is told of it."""
    why = asked.space.refuses(trial.topology)
    if why:
        return asked.scored(trial, Outcome(error=why, refused=True))
    bonds = "star" if asked.space.hidden else "ring"
    return asked.scored(trial, answer(bonds, replace(trial, start="")))


def most_refused(strategy: Strategy, asked: Problem) -> int:
    """Return how many trials in a row a strategy asks in vain."""
    longest = row = 0
    for told in rounds(strategy, asked, 0, 40)[1]:
        for scored in told:
            row = row + 1 if scored.outcome.refused else 0
            longest = max(longest, row)
    return longest


def optimum(bonds: str) -> float:
    """Return the least score of a space, all its candidates asked."""
    whole = problem(bonds)
    return min(answered(whole, whole.trial(point)).score for point, _ in candidates(whole.space))


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_frozen_data_with_defaults_and_words(name: str) -> None:
    made = strategies.get(name)()
    assert is_dataclass(made) and made.__dataclass_params__.frozen
    assert made == type(made)(**{f.name: getattr(made, f.name) for f in fields(made)})
    assert type(made).__doc__ and len(type(made).__doc__) > 60


@pytest.mark.parametrize("name", NAMES)
def test_trials_depend_on_the_seed_alone(name: str) -> None:
    made = strategies.get(name)()
    first = run(made, evaluations=25)
    assert first.trials
    assert keys(first) == keys(run(made, evaluations=25, backwards=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_search_goes_on_from_its_history(name: str) -> None:
    made = strategies.get(name)()
    asked = problem(space_of(made))
    batches, history, end = rounds(made, asked, 3, 6)
    for number, batch in enumerate(batches):
        assert propose(made, asked, history[:number], 3) == batch
    if end is not None:
        assert propose(made, asked, history, 3) is None


@pytest.mark.parametrize("name", NAMES)
def test_refused_candidates_are_not_asked_for_ever(name: str) -> None:
    made = strategies.get(name)()
    bonds = space_of(made)
    assert most_refused(made, problem(bonds, params=24)) <= MOST_REFUSED
    assert most_refused(made, problem(bonds, degree=2)) <= MOST_REFUSED


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_that_ends_says_why(name: str) -> None:
    made = strategies.get(name)()
    _, _, end = rounds(made, problem(space_of(made)), 0, 300)
    assert end is None or len(end) > 10


@pytest.mark.parametrize("name", NAMES)
def test_the_best_so_far_only_gets_better(name: str) -> None:
    seen: list[float] = []
    made = strategies.get(name)()
    bonds = space_of(made)

    def watch(found: Found) -> None:
        if found.best is not None:
            seen.append(found.best.score)

    pool = Backwards(work(bonds))
    search(problem(bonds), made, pool, MemoryRecord(), Limits(evaluations=30), 1, watch)
    assert seen and seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_optimum_of_a_small_space_is_found_within_its_size(name: str) -> None:
    made = strategies.get(name)()
    bonds = space_of(made)
    most = size_of(problem(bonds).space).candidates
    assert reaches(made, most), (run(made, evaluations=most).best, optimum(bonds))


def reaches(strategy: Strategy, evaluations: int) -> bool:
    best = run(strategy, evaluations=evaluations).best
    return best is not None and best.score <= optimum(space_of(strategy)) + 1e-9


def test_another_hash_seed_changes_nothing() -> None:
    told = elsewhere(f"{__name__}:asked")
    assert told == asked()
    assert sorted(told) == sorted(NAMES)


def asked() -> dict[str, list[str]]:
    """Return what every strategy asks for."""
    return {
        name: [
            trial.key
            for batch in rounds(made, problem(space_of(made)), 0, 8)[0]
            for trial in batch.trials
        ]
        for name, made in ((name, strategies.get(name)()) for name in NAMES)
    }


class Stubborn(Strategy):
    """Asks for the widest network again and again, and ends without a word."""

    def search(self, problem: Problem, rng: Random) -> Asking:
        for _ in range(50):
            wide = tuple(axis.values()[-1] for axis in problem.space.axes)
            yield Batch((problem.trial(wide),) * 4)
        return ""


class Forgetful(Strategy):
    """Draws from a generator of its own."""

    rng = Random(0)

    def search(self, problem: Problem, rng: Random) -> Asking:
        while True:
            yield Batch((problem.trial(problem.space.draw(self.rng)),) * 2)


def test_the_laws_can_fail() -> None:
    assert most_refused(Stubborn(), problem("ring", params=24)) > MOST_REFUSED
    assert rounds(Stubborn(), problem("ring"), 0, 300)[2] == ""
    assert not reaches(Stubborn(), size_of(problem("ring").space).candidates)
    assert keys(run(Forgetful(), evaluations=9)) != keys(run(Forgetful(), evaluations=9))


def test_greedy_growth_starts_fits_from_its_parent_and_refits_what_it_keeps() -> None:
    batches, history, end = rounds(strategies.get("greedy")(), problem("ring"), 0, 4)
    assert batches[0].trials[0].topology.bonds == ()
    tries = batches[1].trials
    assert {trial.effort for trial in tries} == {0.1}
    assert {trial.start for trial in tries} == {batches[0].trials[0].key}
    best = min(history[1], key=lambda told: told.score)
    assert batches[2].trials[0].topology == best.trial.topology
    assert batches[2].trials[0].effort == 1.0 and batches[2].trials[0].start == best.trial.key
    assert end is None


def test_greedy_growth_of_a_star_grows_paths_through_its_hub() -> None:
    batches, _, _ = rounds(strategies.get("greedy")(), problem("star"), 0, 2)
    pairs = {trial.topology.bonds for trial in batches[1].trials}
    assert pairs == {((0, 1, 2),), ((0, 2, 2),), ((1, 2, 2),)}


def test_exhaustive_goes_by_size_and_leaves_out_what_cannot_win() -> None:
    made = strategies.get("exhaustive")(batch=1)
    batches, history, end = rounds(made, problem("ring"), 0, 1000)
    sizes = [batch.trials[0].topology.parameters for batch in batches]
    assert sizes == sorted(sizes)
    whole = size_of(problem("ring").space).candidates
    assert len(sizes) < whole and end.startswith(f"all of {whole} candidates: {len(sizes)} fitted")
    best = min(told[0].score for told in history)
    assert best == pytest.approx(optimum("ring"))
    small = strategies.get("exhaustive")(limit=20)
    assert "at most 27 candidates at 162 points, at most 20 are tried" in small.refuses(
        problem("ring")
    )


def test_core_shapes_need_a_star() -> None:
    made = strategies.get("core-shape")()
    assert "need a star" in made.refuses(problem("ring"))
    assert not made.refuses(problem("star"))
    asked = rounds(made, problem("star"), 0, 100)[0]
    assert sum(len(batch.trials) for batch in asked) <= size_of(problem("star").space).candidates


def test_gates_ask_for_few_fits_and_start_from_the_wide_one() -> None:
    made = strategies.get("svdinstn")()
    assert "vertices without a mode" in made.refuses(problem("star"))
    batches, history, end = rounds(made, problem("ring"), 0, 100)
    joint, narrow = batches
    assert [trial.gates for trial in joint.trials] == list(made.thresholds)
    assert {trial.start for trial in narrow.trials} <= {trial.key for trial in joint.trials}
    assert all(trial.gates == 0 and trial.effort == 1 for trial in narrow.trials)
    assert end == "all of 5 thresholds"
    for told in history[0]:
        assert any(key.startswith("kept ") for key in told.outcome.metrics)


@given(st.permutations(range(6)), st.permutations(range(6)), st.integers(0, 99))
def test_orders_are_crossed_to_orders(first: list[int], second: list[int], seed: int) -> None:
    from tnc.explore.strategies.tnga import _ordered

    child = _ordered(tuple(first), tuple(second), Random(seed))
    assert sorted(child) == list(range(6))
    assert _ordered(tuple(first), tuple(first), Random(seed)) == tuple(first)


def test_local_samples_are_near_the_best() -> None:
    made = strategies.get("tnls")(samples=30, swaps=0)
    batches, history, _ = rounds(made, problem("ring"), 0, 6)
    for number in range(1, 6):
        told = [scored for rounds_ in history[:number] for scored in rounds_]
        centre = min(told, key=lambda scored: scored.score).trial.point
        assert all(trial.point[-1] == centre[-1] for trial in batches[number].trials)
        steps = [
            abs(value - middle)
            for trial in batches[number].trials
            for value, middle in zip(trial.point[:-1], centre[:-1])
        ]
        assert max(steps) <= 2 and sum(steps) < len(steps)


def test_spectral_searches_around_its_best_when_its_process_is_at_an_end(monkeypatch) -> None:
    kind, centres = type(strategies.get("tnale")()), []
    around = kind.around

    def seen(self, asked, rng, centre):
        centres.append(centre)
        return (yield from around(self, asked, rng, centre))

    monkeypatch.setattr(kind, "around", seen)
    found = run(strategies.get("spectral")(patience=4), evaluations=60)
    assert centres
    scores = {told.trial.point: told.score for told in found.trials}
    begun = [told.score for told in found.trials[: 1 + list(scores).index(centres[0])]]
    assert scores[centres[0]] == min(begun)
