"""The folder of a run: what was asked for, the record, what happened, who is at it."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from tnc.decide.spectree import parse_tree
from tnc.errors import SearchError
from tnc.explore.waiting import Waiting
from tnc.files import check_place, write_text, writing
from tnc.searching.spec import SearchSpec, checked
from tnc.searching.target import Given

VERSION = 1
RUN, RECORD, EVENTS, LOCK = "run.json", "evals.sqlite", "events.jsonl", ".lock"


@dataclass
class RunFolder:
    """`run.json` (written once), `evals.sqlite`, and `events.jsonl`, which only grows."""

    path: Path
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls, path: Path, spec: SearchSpec, work: str, record: Path | None = None, run: str = ""
    ) -> RunFolder:
        """Make the folder of a new run, or take an empty one. Raises SearchError.

        `work` is the digest of what is done, `record` a file that runs share, `run` the name of
        the rows that are this run's.
        """
        check_place(path, SearchError)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            whole = (path / RUN).is_file()
            raise SearchError(
                f"{path} is there already" + ("" if whole else " and is no run"),
                hint="choose another --out"
                + (f", or go on with it: tnc search resume {path}" if whole else ""),
            )
        about = {
            "version": VERSION,
            "id": run or uuid4().hex[:12],
            "spec": spec.to_data(),
            "work": work,
            "record": str(record.resolve()) if record else "",
            "environment": environment(),
            "created": _now(),
        }
        with writing(path, SearchError):
            path.mkdir(parents=True, exist_ok=True)
            if isinstance(spec.search.target, Given):
                spec.search.target.save(path)
            write_text(path / RUN, json.dumps(about, indent=1) + "\n")
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read the folder of a run. Raises SearchError."""
        try:
            about = json.loads((path / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SearchError(
                f"{path} is no folder of a search: it has no {RUN}",
                hint="`tnc search run SPEC --out DIR` makes one",
            ) from error
        except (OSError, ValueError) as error:
            raise SearchError(f"cannot read {path / RUN}: {error}") from error
        if not isinstance(about, dict) or about.get("version") != VERSION:
            raise SearchError(
                f"{path / RUN} is of another version than {VERSION}", hint="search again"
            )
        return cls(path, about)

    @property
    def record(self) -> Path:
        """The record: the folder's own, or one that runs share."""
        return Path(self.about["record"] or self.path / RECORD)

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        return f"tnc search resume {self.path}"

    def spec(self, overrides: tuple[str, ...] = ()) -> SearchSpec:
        """Return the resolved spec; a target in the folder is found where the folder is now."""
        from tnc.decide.specfile import override

        data = json.loads(json.dumps(self.about["spec"]))
        target = data["search"]["target"]
        inside = self.path / str(target.get("file", ""))
        if target.get("file") and inside.is_file():
            target["file"] = str(inside.resolve())
        tree = parse_tree(json.dumps(data), str(self.path / RUN))
        for assignment in overrides:
            tree = override(tree, assignment)
        return checked(tree)

    def events(self) -> list[dict[str, Any]]:
        """Return what happened, in order. Lines that a kill cut are left out."""
        try:
            text = (self.path / EVENTS).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        found = []
        for line in text.split("\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                found.append(event)
        return found

    def log(self, waiting: Waiting, event: str, **more: Any) -> None:
        """Append one event; a cut last line is ended first."""
        path = self.path / EVENTS
        line = json.dumps({"event": event, "time": _now(), **more}) + "\n"
        waiting(lambda: _append(path, line.encode()), str(path))

    @property
    def live(self) -> bool:
        """Whether a process is at this run now."""
        try:
            with _locked(self.path / LOCK, write=False) as mine:
                return not mine
        except OSError:
            return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the one process at this run. Raises SearchError where another is."""
        with ExitStack() as held:
            with writing(self.path, SearchError):
                mine = held.enter_context(_locked(self.path / LOCK, write=True))
            if not mine:
                raise SearchError(
                    f"another process is at {self.path}",
                    hint=f"`tnc search status {self.path}` shows how far it is",
                )
            yield


def free_folder(name: str) -> Path:
    """Return `runs/NAME`, or with the first number behind that is free.

    >>> free_folder("a-name-that-nothing-has").as_posix()
    'runs/a-name-that-nothing-has'
    """
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def environment() -> dict[str, str]:
    """Return what fits may depend on in their last digits, and where they ran."""
    from tnc import __version__

    return {
        "tnc": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "host": socket.gethostname(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _append(path: Path, line: bytes) -> None:
    """Write at the end of a file in one call, or not at all: what a full disk cut is taken back."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        cut = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        whole = b"\n" * cut + line
        try:
            written = os.write(handle, whole)
        except OSError:
            os.ftruncate(handle, size)
            raise
        if written < len(whole):
            os.ftruncate(handle, size)
            raise OSError(28, "No space left on device", str(path))
    finally:
        os.close(handle)


@contextmanager
def _locked(path: Path, write: bool) -> Iterator[bool]:
    """Yield whether the lock is ours; it ends with the process, however that ends."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT if write else os.O_RDONLY, 0o644)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            mine = True
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(handle)
