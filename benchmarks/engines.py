"""Engines of a search: candidates of about one second, two workers beside none.

Every candidate is a real fit (`adam`, so many steps that one takes a second of the processor) of
a ring to a tensor of order 6 that no ring fits. Engines take turns over the same candidates, all
workers started and warm before; figures are medians of ratios of wall seconds, which need as many
free processors as there are workers. `busy` is the share of the workers' time that was spent in
fits: what the engine leaves of them, on a machine with other work too. Each process runs one
thread. Answers of all engines must be equal to the last bit. Beside it, what an engine costs by
itself: tasks a second that do nothing. Ray is left out, with a line, where it is not installed.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from random import Random
from statistics import median

import numpy as np

from benchmarks.outcome import Arguments, Goal, Outcome, table
from tnc.explore import Engine, FitTopology, Pool, Space, Task, Trial, engines
from tnc.explore import Outcome as Done
from tnc.explore.engine import threads
from tnc.explore.evaluators.adam import Adam

NAME = "engines"
ENVIRONMENT = threads(1)

MODES, RANK = (3,) * 6, 4
TASKS, TURNS = 12, 3
SECONDS = 1.0
SMALL = 400
WORKERS = 2


@dataclass(frozen=True)
class Nothing:
    """Work that is none: what is left is the engine."""

    def __call__(self, task: Task) -> tuple[Done, None]:
        return Done({"rse": 0.0}), None


def run(arguments: Arguments) -> Outcome:
    """Time every engine in turns; `--quick` takes candidates of a tenth of a second, one turn."""
    load = os.getloadavg()
    work = _work(SECONDS / 10 if arguments.quick else SECONDS)
    tasks, turns = _tasks(TASKS), 1 if arguments.quick else TURNS
    kinds = _kinds()
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
    wanted: dict[int, bytes] = {}
    with ExitStack() as held:
        pools = {name: held.enter_context(kind.open(work)) for name, kind in kinds.items()}
        for name, pool in pools.items():
            _run(pool, tasks[:WORKERS], {})
            print(f"{name}: ready", flush=True)
        for turn in range(turns):
            for name in sorted(pools, key=lambda n: Random(f"{turn} {n}").random()):
                took, fitting = _run(pools[name], tasks, wanted)
                seconds[name].append(took)
                busy[name].append(fitting / took / pools[name].workers)
                print(f"turn {turn + 1}, {name}: {took:.2f} s", flush=True)
    small = {name: _small(kind) for name, kind in kinds.items()}
    rows = [
        (name, median(times), median(times) / TASKS, median(busy[name]), small[name])
        for name, times in seconds.items()
    ]
    goals = [Goal("processes with 2 workers over serial", _ratio(seconds, "serial", "processes"),
                  1.8, "at least")]  # fmt: skip
    if "ray" in seconds:
        goals.append(Goal("ray over processes, seconds", _ratio(seconds, "ray", "processes"), 1.15))
    else:
        print("ray is not installed: its row is left out (pip install 'tnc[ray]')")
    heads = ("engine", f"s for {TASKS}", "s a candidate", "busy", "empty tasks/s")
    figures = {
        "seconds": seconds,
        "busy": busy,
        "empty tasks a second": small,
        "load before": load,
        "load after": os.getloadavg(),
        "niceness": os.nice(0),
        "steps": work.evaluator.steps,  # type: ignore[attr-defined]
    }
    return Outcome((table(heads, rows),), tuple(goals), figures)


def _kinds() -> dict[str, Engine]:
    kinds: dict[str, Engine] = {"serial": engines.get("serial")()}
    kinds["processes"] = engines.get("processes")(workers=WORKERS)  # type: ignore[call-arg]
    if importlib.util.find_spec("ray"):
        kinds["ray"] = engines.get("ray")(workers=WORKERS)  # type: ignore[call-arg]
    return kinds


def _work(seconds: float) -> FitTopology:
    """Choose the number of steps at which a fit takes so many seconds of the processor."""
    tensor = np.random.default_rng(0).standard_normal(MODES)
    work = FitTopology(tensor, Adam(starts=1, steps=200))
    work.warm()
    task = _tasks(1)[0]
    begun = time.process_time()
    work(task)
    steps = int(200 * seconds / (time.process_time() - begun))
    return replace(work, evaluator=Adam(starts=1, steps=steps))


def _tasks(count: int) -> list[Task]:
    """Rings of one size whose modes sit at different places: of equal cost."""
    space = Space.of(MODES, "ring", RANK, places=True)
    orders = [space.axes[-1].draw(Random(k)) for k in range(10 * count)]
    points = [(*[RANK] * len(MODES), order) for order in orders]
    tasks = {space.topology(p).key: Task(Trial(p, space.topology(p))) for p in points}
    return list(tasks.values())[:count]


def _run(pool: Pool, tasks: list[Task], wanted: dict[int, bytes]) -> tuple[float, float]:
    """Return the wall seconds for all tasks, and those of their fits added up.

    The first answers are those that all must give.
    """
    begun, fitting = time.perf_counter(), 0.0
    for number, (outcome, cores) in pool.run(tasks):
        assert outcome.ok and cores is not None, outcome.error
        fitting += outcome.seconds
        answer = b"".join(core.tobytes() for core in cores)
        if wanted.setdefault(number, answer) != answer:
            raise SystemExit("engines differ in what they answer")
    return time.perf_counter() - begun, fitting


def _small(kind: Engine) -> float:
    tasks = (_tasks(20) * SMALL)[:SMALL]
    with kind.open(Nothing()) as pool:
        for _ in pool.run(tasks[:WORKERS]):
            pass
        begun = time.perf_counter()
        for _ in pool.run(tasks):
            pass
        return SMALL / (time.perf_counter() - begun)


def _ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> float:
    return median(a / b for a, b in zip(seconds[over], seconds[under]))
