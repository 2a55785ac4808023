"""The journal of a streamed compilation: what is done, on the disk before it counts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tnc.errors import ArtifactError

NAME = ".journal.jsonl"


class Journal:
    """Lines of JSON, each flushed to the disk; a last line that a kill cut off does not count.

    One process holds a journal at a time. The first line says whose work it is.
    """

    def __init__(self, folder: Path, owner: Mapping[str, Any]) -> None:
        """Open or begin a journal. Raises ArtifactError where another run holds or began it."""
        self._path = folder / NAME
        self._file: BinaryIO = self._path.open("a+b")
        _lock(self._file, folder)
        self.lines: list[dict[str, Any]] = self._read()
        if self.lines and self.lines[0] != dict(owner):
            changed = [key for key in owner if self.lines[0].get(key) != owner[key]]
            self._file.close()
            raise ArtifactError(
                f"an unfinished compilation lies in {folder}, made with another "
                f"{' and '.join(changed) or 'version'}",
                where=str(folder),
                hint="remove that folder to start again, or compile into another one",
            )
        if not self.lines:
            self.add(dict(owner))

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line and wait until it is on the disk."""
        self._file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(dict(line))

    def find(self, key: str, value: Any = None) -> dict[str, Any] | None:
        """Return the last line that has `key` (equal to `value`, where it is given)."""
        found = [ln for ln in self.lines if key in ln and (value is None or ln[key] == value)]
        return found[-1] if found else None

    def close(self) -> None:
        """Close the file and let go of the lock."""
        self._file.close()

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        whole = self._file.read()
        good = whole[: whole.rfind(b"\n") + 1]
        if len(good) < len(whole):
            self._file.truncate(len(good))
        try:
            found: list[dict[str, Any]] = [json.loads(line) for line in good.splitlines()]
            return found
        except ValueError as error:
            raise ArtifactError(
                f"the journal cannot be read: {error}",
                where=str(self._path),
                hint="remove its folder to start again",
            ) from error


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ArtifactError(
            "another process is compiling into this folder", where=str(folder), hint="wait for it"
        ) from error
