"""The SQLite record: rows are there in full or not at all; full disks and locks are told."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.explore.toys import SPACE, tasks, work
from tnc.errors import Interrupted, SearchError
from tnc.explore import FitTopology, MemoryRecord, Outcome, Record, Topology, Trial
from tnc.explore.evaluators.als import ALS
from tnc.explore.record_sqlite import SqliteRecord, packed, reading, unpacked
from tnc.explore.waiting import Waiting

ROOT = Path(__file__).resolve().parents[3]
OUTCOMES = (
    Outcome({"rse": 0.1 + 0.2, "ratio": 1e-300, "params": 12.0}, seconds=0.5),
    Outcome(error="hung: no answer in 2 seconds", seconds=2.0, attempts=3, lost=True),
    Outcome({"rse": 0.0, "odd": float("inf")}),
)


def filled(record: Record) -> list[Trial]:
    given = [task.trial for task in tasks(3)]
    rng = np.random.default_rng(0)
    for number, (trial, outcome) in enumerate(zip(given, OUTCOMES)):
        cores = tuple(rng.standard_normal(shape) for shape in trial.topology.shapes)
        record.write(trial, outcome, None if number == 1 else cores)
    return given


@pytest.mark.parametrize("kind", ["memory", "sqlite", "sqlite in memory"])
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "r.sqlite" if kind == "sqlite" else ":memory:"
    record: Record = MemoryRecord() if kind == "memory" else SqliteRecord.open(place, "w")
    given = filled(record)
    record.write(given[0], Outcome(error="later"), None)
    assert tuple(record.outcome(trial.key) for trial in given) == OUTCOMES
    first = record.cores(given[0].key)
    wanted = np.random.default_rng(0).standard_normal(given[0].topology.shapes[0])
    assert first is not None and first[0].tobytes() == wanted.tobytes()
    assert record.cores(given[1].key) is None
    assert record.outcome("other") is None and record.cores("other") is None


def test_runs_share_a_file_by_content(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    one = SqliteRecord.open(path, "same work", "one")
    given = filled(one)
    two, other = SqliteRecord.open(path, "same work", "two"), SqliteRecord.open(path, "other", "o")
    assert two.outcome(given[0].key) == OUTCOMES[0] and other.outcome(given[0].key) is None
    more = tasks(5)[4].trial
    two.write(more, OUTCOMES[0], None)
    assert [trial for trial, _ in two.rows([given[2].key])] == [given[2], more]
    assert [trial for trial, _ in reading(path, "same work", "one").rows()] == given
    assert list(other.rows()) == []


def test_what_was_lost_is_forgotten() -> None:
    record = SqliteRecord.open(":memory:", "w")
    given = filled(record)
    assert record.forget_lost() == 1 and record.forget_lost() == 0
    assert [record.outcome(trial.key) for trial in given] == [OUTCOMES[0], None, OUTCOMES[2]]


def test_keys_tell_all_that_outcomes_depend_on() -> None:
    tensor = np.arange(6.0).reshape(2, 3)
    works = [
        FitTopology(tensor, ALS()),
        FitTopology(tensor, ALS(starts=7)),
        FitTopology(tensor, ALS(), seed=1),
        FitTopology(tensor.T.copy(), ALS()),
        FitTopology(tensor.reshape(3, 2), ALS()),
        FitTopology(tensor + 1e-9, ALS()),
        FitTopology(tensor, ALS(), slack=0.1),
    ]
    assert len({each.digest for each in works}) == len(works)
    assert FitTopology(tensor.astype(np.float32), ALS()).digest == works[0].digest
    assert FitTopology(tensor[:, ::1], ALS()).digest == works[0].digest


@pytest.mark.parametrize(
    "trial",
    [
        Trial((1, (0, 1), "a"), Topology.of((3, 3), [(0, 1, 2)])),
        Trial((1,), Topology.of((3, 3, 3), [(0, 3, 2), (1, 3, 2), (2, 3, 2)], 1), 0.5, "k", 0.25),
    ],
)
def test_trials_as_json(trial: Trial) -> None:
    assert Trial.from_json(trial.to_json()) == trial


def test_cores_are_no_pickles() -> None:
    cores = (np.ones(()), np.zeros((0, 3)), np.ones((2, 3, 4)))
    assert [core.shape for core in unpacked(packed(cores))] == [(), (0, 3), (2, 3, 4)]
    assert unpacked(packed(tuple(np.ones(1) for _ in range(12))))[11].shape == (1,)
    for wrong in (packed((np.array([object()]),)), b"PK garbage", b""):
        with pytest.raises(SearchError, match="cannot be read"):
            unpacked(wrong)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello" * 100)
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    foreign = sqlite3.connect(tmp_path / "foreign")
    foreign.execute("CREATE TABLE eval (a)")
    for name in ("text", "newer", "foreign"):
        with pytest.raises(SearchError, match="is no record of searches"):
            SqliteRecord.open(tmp_path / name, "w")
    for name in ("text", "nothing"):
        with pytest.raises(SearchError, match="cannot read the record"):
            reading(tmp_path / name, "w")
    assert not (tmp_path / "nothing").exists()


def waits(after: int, then: Callable[[], object]) -> tuple[Waiting, list[str]]:
    """Waiting that does not take time: after some pauses something is done about it."""
    told: list[str] = []
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == after:
            then()

    return Waiting(told.append, 1e9, "tnc search resume DIR", sleep), told


def large(record: SqliteRecord, count: int) -> None:
    topology = SPACE.topology(SPACE.draw(__import__("random").Random(0)))
    for number in range(count):
        record.write(Trial((number,), topology, start=str(number)), OUTCOMES[0], (np.ones(600),))


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    record = SqliteRecord.open(path, "w")

    def limit(pages: int) -> Any:
        return record.base.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    record.waiting, told = waits(3, lambda: limit(100_000))
    limit(12)
    large(record, 30)
    assert told == [
        f"the record {path} cannot be written: database or disk is full; trying again for 1e+09 "
        "seconds"
    ]
    assert len(list(reading(path, "w").rows())) == 30
    limit(12)
    record.waiting = Waiting(told.append, 0.0, "tnc search resume DIR", lambda s: None)
    with pytest.raises(Interrupted, match="could not be written for 0 seconds") as raised:
        large(SqliteRecord(record.base, "w2", "", str(path), record.waiting), 30)
    assert raised.value.exit_code == 5 and "then: tnc search resume DIR" in raised.value.hint
    again = reading(path, "w2")
    assert all(again.cores(trial.key) is not None for trial, _ in again.rows())


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    record = SqliteRecord.open(path, "w")
    record.base.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    record.waiting, told = waits(2, lambda: other.execute("ROLLBACK"))
    given = filled(record)
    assert record.outcome(given[2].key) == OUTCOMES[2]
    assert len(told) == 1 and "database is locked" in told[0]


def test_mistakes_are_not_waited_for() -> None:
    record = SqliteRecord.open(":memory:", "w")
    record.base.execute("DROP TABLE eval")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        record.outcome("k")


WRITER = """
import sys
import numpy as np
from tests.unit.explore.toys import work, tasks
from tnc.explore.record_sqlite import SqliteRecord
record = SqliteRecord.open(sys.argv[1], "w")
for task in tasks(60):
    record.write(task.trial, *work()(task))
    print(task.trial.key, flush=True)
"""


def test_a_kill_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert writer.stdout
    known = [writer.stdout.readline().strip() for _ in range(7)]
    os.kill(writer.pid, signal.SIGKILL)
    known += writer.stdout.read().split()
    writer.wait()
    with_cores = [task for task in tasks(60) if task.trial.key in known]
    for record in (reading(path, "w"), SqliteRecord.open(path, "w")):
        for task in with_cores:
            outcome, cores = work()(task)
            found = record.cores(task.trial.key)
            stored = record.outcome(task.trial.key)
            assert stored is not None and dict(stored.metrics) == dict(outcome.metrics)
            assert cores and found and all((a == b).all() for a, b in zip(cores, found))
