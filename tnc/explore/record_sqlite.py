"""The record of search runs: one SQLite file, by content, that survives its writer."""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tnc.errors import SearchError
from tnc.explore.record import Cores, Record
from tnc.explore.trial import Outcome, Trial
from tnc.explore.waiting import Waiting

VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS eval (
    key TEXT PRIMARY KEY, work TEXT NOT NULL, run TEXT NOT NULL, trial TEXT NOT NULL,
    status TEXT NOT NULL, attempts INTEGER NOT NULL, metrics TEXT NOT NULL, error TEXT NOT NULL,
    seconds REAL NOT NULL, cores BLOB
)
"""
_OUTCOME = "metrics, error, seconds, attempts, status"
_INSERT = "INSERT INTO eval VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(key) DO NOTHING"


@dataclass
class SqliteRecord(Record):
    """Rows keyed by SHA-256 of the `work` (target, evaluator, seed) and the trial.

    Runs may share a file: equal work is done once. Every row is one transaction: it is there in
    full or not at all, whenever the process is killed. WAL, so that others read meanwhile.
    `run` names who wrote a row.
    """

    base: sqlite3.Connection
    work: str
    run: str = ""
    place: str = ""
    waiting: Waiting = field(default_factory=Waiting)

    @classmethod
    def open(
        cls, path: str | Path, work: str, run: str = "", waiting: Waiting | None = None
    ) -> SqliteRecord:
        """Open a file, or make one; `:memory:` is for this process. Raises SearchError."""
        waiting = waiting or Waiting()
        try:
            base = waiting(lambda: _opened(str(path)), str(path))
        except sqlite3.Error as error:
            raise SearchError(
                f"{path} is no record of searches: {error}", hint="name another file"
            ) from error
        return cls(base, work, run, str(path), waiting)

    def key(self, trial: str) -> str:
        """Return the key of a row from the key of its trial."""
        return sha256(f"{self.work} {trial}".encode()).hexdigest()

    def outcome(self, key: str) -> Outcome | None:
        row = self._row(_OUTCOME, key)
        return None if row is None else _outcome(row)

    def cores(self, key: str) -> Cores | None:
        row = self._row("cores", key)
        return None if row is None or row[0] is None else unpacked(row[0])

    def write(self, trial: Trial, outcome: Outcome, cores: Cores | None) -> None:
        row = (
            self.key(trial.key),
            self.work,
            self.run,
            json.dumps(trial.to_json()),
            "ok" if outcome.ok else "lost" if outcome.lost else "failed",
            outcome.attempts,
            json.dumps(dict(outcome.metrics)),
            outcome.error,
            outcome.seconds,
            None if cores is None else packed(cores),
        )
        self._wait(lambda: self.base.execute(_INSERT, row))

    def rows(self, trials: Iterable[str] = ()) -> Iterator[tuple[Trial, Outcome]]:
        """Yield what is on record of the trials with these keys, then what else this run wrote."""
        query = f"SELECT {_OUTCOME}, trial FROM eval WHERE "
        seen: set[str] = set()
        for key in trials:
            for row in self.base.execute(query + "key = ?", (self.key(key),)):
                seen.add(key)
                yield _read(row)
        own = (self.work, self.run)
        for row in self.base.execute(query + "work = ? AND run = ? ORDER BY rowid", own):
            trial, outcome = _read(row)
            if trial.key not in seen:
                yield trial, outcome

    def forget_lost(self) -> int:
        """Take off what engines had no answer of; return how many rows that were."""
        delete = "DELETE FROM eval WHERE work = ? AND status = 'lost'"
        return int(self._wait(lambda: self.base.execute(delete, (self.work,))).rowcount)

    @property
    def written(self) -> int:
        """How many rows this run wrote."""
        query = "SELECT count(*) FROM eval WHERE work = ? AND run = ?"
        return int(self.base.execute(query, (self.work, self.run)).fetchone()[0])

    def save(self, path: Path) -> None:
        """Write the whole record to another file, complete or not at all."""
        other = sqlite3.connect(path)
        try:
            self._wait(lambda: self.base.backup(other))
        finally:
            other.close()

    def close(self) -> None:
        """Close the file."""
        self.base.close()

    def _row(self, columns: str, trial: str) -> Any:
        query = f"SELECT {columns} FROM eval WHERE key = ?"
        return self._wait(lambda: self.base.execute(query, (self.key(trial),)).fetchone())

    def _wait(self, act: Any) -> Any:
        return self.waiting(act, f"the record {self.place}")


def reading(path: Path, work: str, run: str = "") -> SqliteRecord:
    """Open a record that is there for reading only, also while its run is going on.

    Raises SearchError.
    """
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        try:
            base = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True)
            base.execute("SELECT count(*) FROM eval").fetchone()
            return SqliteRecord(base, work, run, str(path))
        except sqlite3.Error as error:
            told = error
    raise SearchError(f"cannot read the record {path}: {told}", hint="is it a run's folder?")


def packed(cores: Cores) -> bytes:
    """Write cores as an npz archive, without pickle."""
    stream = io.BytesIO()
    np.savez(stream, *cores)
    return stream.getvalue()


def unpacked(content: bytes) -> Cores:
    """Read what `packed` wrote. Raises SearchError."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return tuple(archive[f"arr_{k}"] for k in range(len(archive.files)))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise SearchError(f"cores on record cannot be read: {error}") from error


def _opened(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        (version,) = base.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it has version {version}, this tnc reads {VERSION}")
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        if not version:
            base.execute(_TABLE)
            base.execute("CREATE INDEX IF NOT EXISTS of_run ON eval (work, run)")
            base.execute(f"PRAGMA user_version = {VERSION}")
        base.execute("SELECT key, work, run FROM eval LIMIT 1")
    except BaseException:
        base.close()
        raise
    return base


def _read(row: Any) -> tuple[Trial, Outcome]:
    return Trial.from_json(json.loads(row[-1])), _outcome(row)


def _outcome(row: Any) -> Outcome:
    metrics, error, seconds, attempts, status = row[:5]
    return Outcome(json.loads(metrics), error, False, seconds, attempts, lost=status == "lost")
