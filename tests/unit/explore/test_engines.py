"""Laws of every engine: equal answers whatever the order, deaths and the number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.unit.explore.toys import answers, tasks, work
from tnc.errors import MissingExtra, SearchError
from tnc.explore import Engine, engines
from tnc.explore.engines.processes import Processes
from tnc.explore.engines.serial import Serial

ROOT = Path(__file__).resolve().parents[3]
DATA = {"serial": [{}], "processes": [{"workers": count} for count in (1, 2, 4)],
        "ray": [{"workers": 2}]}  # fmt: skip
"""Options of engines; one that is not here is tried with none."""


def cases() -> Iterator[object]:
    for name, kind in engines.all().items():
        for options in DATA.get(name, [{}]):
            marks = [pytest.mark.ray] if name == "ray" else []
            yield pytest.param(kind(**options), id=f"{name} {options}", marks=marks)


@pytest.mark.parametrize("engine", cases())
def test_answers_do_not_depend_on_workers_or_order(engine: Engine) -> None:
    given = tasks()
    wanted = answers(Serial().open(work()), given)
    assert len({str(each) for each in wanted}) == len(given)
    shuffled = list(range(len(given)))
    Random(1).shuffle(shuffled)
    with engine.open(work()) as pool:
        assert answers(pool, given) == wanted
        turned = answers(pool, [given[k] for k in shuffled])
        assert turned == [wanted[k] for k in shuffled]
        assert answers(pool, []) == [] and answers(pool, given[:1]) == wanted[:1]


@pytest.mark.parametrize("engine", cases())
@pytest.mark.parametrize("how", ["nan", "divide"])
def test_a_fit_that_fails_is_an_answer(engine: Engine, how: str) -> None:
    given = tasks(6)
    bad = str(given[2].trial.topology)
    with engine.open(work(**{how: bad})) as pool:
        found = answers(pool, given)
    wanted = answers(Serial().open(work()), given)
    told = {"nan": "the error of the fit is nan", "divide": "ZeroDivisionError: by 0"}[how]
    assert found[2] == ({}, told, []) and found[:2] + found[3:] == wanted[:2] + wanted[3:]


@pytest.mark.parametrize("engine", cases())
def test_a_mistake_in_an_evaluator_is_raised(engine: Engine) -> None:
    given = tasks(6)
    with (
        engine.open(work(mistake=str(given[3].trial.topology))) as pool,
        pytest.raises(KeyError, match="a mistake in the evaluator"),
    ):
        answers(pool, given)


SAFE = pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=[pytest.mark.ray] if name == "ray" else [])
     for name in engines.all() if name != "serial"],
)  # fmt: skip
"""Engines that survive their workers: all but the one that has none."""


@SAFE
def test_what_a_dead_worker_held_is_given_to_another(kind: str, tmp_path: Path) -> None:
    given = tasks(20)
    once = {"die": str(given[4].trial.topology), "once": str(tmp_path / "died")}
    with engines.get(kind)(workers=2).open(work(**once)) as pool:  # type: ignore[call-arg]
        outcomes = dict(pool.run(given))
    assert (tmp_path / "died").exists()
    assert [outcomes[k][0].attempts for k in range(20)] == [2 if k == 4 else 1 for k in range(20)]
    wanted = dict(Serial().open(work()).run(given))
    assert all(outcomes[k][0].metrics == wanted[k][0].metrics for k in range(20))


@SAFE
def test_a_candidate_that_kills_and_one_that_hangs_are_answered(kind: str) -> None:
    given = tasks(8)
    options = {"workers": 2, "timeout": 2.0 if kind == "ray" else 0.5}
    engine = engines.get(kind)(**options)
    bad = str(given[1].trial.topology)
    wanted = answers(Serial().open(work()), given)
    with engine.open(work(die=bad)) as pool:
        outcomes = dict(pool.run(given))
        assert outcomes[1][0].error == "killed 3 workers, one after another"
        assert outcomes[1][0].attempts == 3
        assert [outcomes[k][0].metrics for k in (0, 7)] == [wanted[0][0], wanted[7][0]]
    with engine.open(work(hang=bad)) as pool:
        found = answers(pool, given)
    assert found[1] == ({}, f"hung: no answer in {options['timeout']:g} seconds", [])
    assert found[:1] + found[2:] == wanted[:1] + wanted[2:]


def test_nobody_hangs_while_the_coordinator_is_away() -> None:
    given = tasks(12)
    with Processes(workers=2, timeout=0.4).open(work(seconds=0.01)) as pool:
        outcomes = []
        for number, (outcome, _) in pool.run(given):
            outcomes.append(outcome.error)
            time.sleep(0.6 if number == 0 else 0.0)
    assert outcomes == [""] * 12


def test_a_round_that_was_given_up_does_not_answer_the_next() -> None:
    given = tasks(30)
    wanted = answers(Serial().open(work()), given)
    with Processes(workers=2).open(work(seconds=0.002)) as pool:
        for _ in pool.run(given):
            break
        assert answers(pool, given[10:20]) == wanted[10:20]


def test_workers_that_cannot_begin_are_told() -> None:
    with pytest.raises(SearchError, match="cannot be sent to workers"):
        Processes(workers=1).open(lambda task: task)
    with (
        Processes(workers=1).open(_Unloadable()) as pool,
        pytest.raises(SearchError, match=r"cannot load what they are to do: .*not here"),
    ):
        answers(pool, tasks(2))


class _Unloadable:
    def __call__(self, task: object) -> object:
        return task

    def __reduce__(self) -> tuple[object, ...]:
        return (_raise, ())


def _raise() -> None:
    raise ImportError("not here")


PARENT = """
import os, signal, sys
from tests.unit.explore.toys import tasks, work
from tnc.explore.engines.processes import Processes
with Processes(workers=2).open(work(seconds=float(sys.argv[1]))) as pool:
    for number, _ in pool.run(tasks(12)):
        print(*(post.worker.process.pid for post in pool._posts), flush=True)
"""


@pytest.mark.parametrize("seconds", ["0.05", "0.4"])
def test_workers_end_with_their_parent(seconds: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, seconds], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert parent.stdout
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    until = time.monotonic() + 5
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlived its parent"
        time.sleep(0.02)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


SCRIPT = """
from dataclasses import dataclass
import numpy as np
from tests.unit.explore.toys import Toy, answers, tasks
from tnc.explore import FitTopology
from tnc.explore.engines.processes import Processes

@dataclass(frozen=True)
class Mine(Toy):
    pass

{guard}
    with Processes(workers=1).open(FitTopology(np.ones((3, 3, 3, 3)), Mine())) as pool:
        print(len(answers(pool, tasks(3))))
"""


@pytest.mark.parametrize(
    ("guard", "told"), [("if __name__ == '__main__':", "3"), ("if True:", "__main__")]
)
def test_an_evaluator_of_a_script(guard: str, told: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("{guard}", guard))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          env=environment, timeout=60)  # fmt: skip
    assert told in done.stdout + done.stderr and (done.returncode == 0) == (told == "3")


def test_a_signal_of_the_terminal_does_not_reach_workers() -> None:
    with Processes(workers=1).open(work()) as pool:
        answers(pool, tasks(2))
        (post,) = pool._posts  # type: ignore[attr-defined]
        assert os.getsid(post.worker.process.pid) != os.getsid(0)
        os.kill(post.worker.process.pid, signal.SIGKILL)
        assert answers(pool, tasks(2)) == answers(Serial().open(work()), tasks(2))


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="needs ray"):
        engines.get("ray")().open(work())


@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_options_that_make_no_sense(kind: str) -> None:
    for options in ({"workers": 0}, {"timeout": 0.0}, {"timeout": float("nan")}):
        with pytest.raises(SearchError, match=f"{kind}: {next(iter(options))} is"):
            engines.get(kind)(**options)


@pytest.mark.ray
def test_a_machine_of_the_cluster_is_lost() -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    given, found, begun = tasks(100), {}, 0
    try:
        engine = engines.get("ray")(workers=2, address=cluster.address)  # type: ignore[call-arg]
        with engine.open(work(seconds=0.1)) as pool:
            for number, (outcome, _) in pool.run(given):
                found[number], begun = dict(outcome.metrics), begun + outcome.attempts
                if other and all(post.ready for post in pool._posts):  # type: ignore[attr-defined]
                    cluster.remove_node(other, allow_graceful=False)
                    other = None
    finally:
        cluster.shutdown()
    assert other is None and begun == len(given) + 1
    wanted = dict(Serial().open(work()).run(given))
    assert found == {number: dict(outcome.metrics) for number, (outcome, _) in wanted.items()}
