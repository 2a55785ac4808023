"""A search survives what happens to it: its record is that of a run to which nothing happened.

In every run one candidate hangs and one has NaN for its error. Then workers are killed at random,
the coordinator is killed five times, the disk is full; the rows of the record, but for the seconds
and the number of attempts, are the same.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import tests.unit.explore.toys  # noqa: F401 registers the evaluator `toy`
from tnc.cli import main
from tnc.explore import Found, Trial
from tnc.explore.record_sqlite import SqliteRecord, reading
from tnc.explore.waiting import Waiting
from tnc.searching import running
from tnc.searching.folder import RunFolder
from tnc.searching.running import begin, load, prepare, resume
from tnc.searching.spec import SearchSpec, read_search

ROOT = Path(__file__).resolve().parents[2]
COUNT = 200
HANGS = "0-2:3 0-3:2 1-2:3 1-4:3 2-3:2 3-4:2"
NAN = "0-1:3 0-2:2 1-2:2 1-3:2 2-3:2 2-4:3 3-4:3"
SPEC = f"""\
search:
  target: {{ring: [3, 3, 3, 3, 3], ranks: [2, 2, 2, 2, 2]}}
  space: {{bonds: full, rank: 3}}
  strategy: {{random: {{batch: 12}}}}
  evaluator: {{toy: {{hang: '{HANGS}', nan: '{NAN}', seconds: 0.005, log: 'LOG'}}}}
  engine: {{processes: {{workers: 2, timeout: 2.0}}}}
  limits: {{evaluations: {COUNT}}}
"""
TNC = "import sys, tests.unit.explore.toys\nfrom tnc.cli import main\nsys.exit(main(sys.argv[1:]))"
QUERY = "SELECT key, work, trial, status, metrics, error, cores FROM eval ORDER BY key"
Rows = list[tuple[Any, ...]]


def rows(folder: Path) -> Rows:
    """What is on record, without what may differ: order, run, seconds, attempts."""
    with sqlite3.connect(folder / "evals.sqlite") as base:
        return base.execute(QUERY).fetchall()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file to which every fit adds its candidate; part of the evaluator, so one for all."""
    return tmp_path_factory.mktemp("fits") / "log"


@pytest.fixture(scope="module")
def spec(log: Path) -> SearchSpec:
    file = log.parent / "faults.yaml"
    file.write_text(SPEC.replace("LOG", str(log)))
    return read_search(file)


@pytest.fixture(scope="module")
def undisturbed(spec: SearchSpec, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows of a run to which nothing happened."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    begin(prepare(spec), folder)
    found = rows(folder)
    assert len(found) == COUNT
    errors = sorted(row[5] for row in found if row[5])
    assert errors == ["hung: no answer in 2 seconds", "the error of the fit is nan"]
    return found


@pytest.fixture(autouse=True)
def fresh(log: Path) -> Iterator[None]:
    log.unlink(missing_ok=True)
    yield


def test_workers_killed_at_random(spec: SearchSpec, undisturbed: Rows, tmp_path: Path) -> None:
    rng, killed, others = Random(0), [], children()

    def kill(found: Found) -> None:
        if found.counts.fitted % 16 == 1:
            killed.append(rng.choice([child for child in children() if child not in others]))
            os.kill(killed[-1], signal.SIGKILL)

    result = begin(prepare(spec), tmp_path / "run", watch=kill)
    assert len(killed) > 10 and result.ended == f"{COUNT} evaluations"
    assert rows(tmp_path / "run") == undisturbed


def children() -> list[int]:
    """The processes that this one has started."""
    told = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [int(child) for child in told.split()]


def test_the_coordinator_killed_five_times(
    spec: SearchSpec, undisturbed: Rows, log: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "run", str(log.parent / "faults.yaml")
    words = ["search", "run", file, "--out", str(folder)]
    kills: list[tuple[int, set[str]]] = []
    for number in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-c", TNC, *words],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(folder, 32 * number, process)
        process.kill()
        process.wait()
        known = {key_of(row[2]) for row in rows(folder)}
        assert 32 * number <= len(known) < COUNT
        kills.append((len(log.read_text().split()), known))
        words = ["search", "resume", str(folder), "--json"]
    assert main(words) == 0
    assert rows(folder) == undisturbed
    fits = log.read_text().split()
    assert COUNT <= len(fits) <= COUNT + 5 * 2 * 12
    again = [known & set(fits[count:]) for count, known in kills]
    assert not any(again), "what was on record was fitted again"
    assert load(RunFolder.open(folder)).counts.evaluations == COUNT


def key_of(trial: str) -> str:
    return Trial.from_json(json.loads(trial)).key


def written(folder: Path) -> int:
    try:
        about = RunFolder.open(folder).about
        return reading(folder / "evals.sqlite", about["work"], about["id"]).written
    except Exception:
        return 0


def wait_for(folder: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while written(folder) < count:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)


def test_the_disk_full_once(
    spec: SearchSpec, undisturbed: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SqliteRecord.open
    records: list[SqliteRecord] = []

    def small(*given: Any) -> SqliteRecord:
        records.append(opened(*given))
        records[-1].base.execute("PRAGMA max_page_count = 40")
        return records[-1]

    monkeypatch.setattr(running.SqliteRecord, "open", small)
    told: list[str] = []

    def freed(text: str) -> None:
        told.append(text)
        records[-1].base.execute("PRAGMA max_page_count = 100000")

    begin(prepare(spec), tmp_path / "run", tell=freed)
    assert len(told) == 1 and "database or disk is full; trying again" in told[0]
    assert rows(tmp_path / "run") == undisturbed


def test_a_disk_that_stays_full_ends_the_run_and_it_goes_on(
    undisturbed: Rows, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder, file = tmp_path / "run", str(log.parent / "faults.yaml")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        patch.setattr(running, "Waiting", lambda tell, resume: Waiting(tell, 0.1, resume))
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
        try:
            assert main(["search", "run", file, "--out", str(folder)]) == 5
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert f"could not be written for 0.1 seconds: disk I/O error\n  try: make room, then: tnc " \
           f"search resume {folder}" in told  # fmt: skip
    assert 0 < len(rows(folder)) < COUNT
    assert main(["search", "resume", str(folder)]) == 0
    assert rows(folder) == undisturbed


@pytest.mark.parametrize("workers", [1, 4])
def test_the_number_of_workers_changes_nothing(
    workers: int, spec: SearchSpec, undisturbed: Rows, tmp_path: Path
) -> None:
    engine = type(spec.search.engine)(workers=workers, timeout=2.0)  # type: ignore[call-arg]
    other = SearchSpec(spec.search.model_copy(update={"engine": engine}))
    begin(prepare(other), tmp_path / "run")
    assert rows(tmp_path / "run") == undisturbed


def test_a_signal_waits_for_an_evaluation_and_the_run_goes_on(
    spec: SearchSpec, undisturbed: Rows, tmp_path: Path
) -> None:
    folder, kind = tmp_path / "run", signal.SIGINT

    def strike(found: Found) -> None:
        if found.counts.fitted == 50:
            os.kill(os.getpid(), kind)

    before = signal.signal(kind, signal.default_int_handler)
    try:
        with pytest.raises(running.Interrupted, match="what was evaluated is on record") as raised:
            begin(prepare(spec), folder, watch=strike)
    finally:
        signal.signal(kind, before)
    assert raised.value.hint == f"tnc search resume {folder}"
    assert len(rows(folder)) == 50
    result = resume(RunFolder.open(folder))
    assert result.counts.fitted == COUNT - 50 and rows(folder) == undisturbed


def test_the_oracle_can_fail(undisturbed: Rows, spec: SearchSpec, tmp_path: Path) -> None:
    other = SearchSpec(spec.search.model_copy(update={"seed": 1}))
    begin(prepare(other), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == COUNT and rows(tmp_path / "run") != undisturbed
