"""The engine of this machine: worker processes, each with one thread."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import cast

from tnc.errors import SearchError
from tnc.explore import worker
from tnc.explore.crew import Crew, Report, Staff, Worker
from tnc.explore.engine import Engine, Pool, Task, Work, engines, processors, threads

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tnc.explore.worker import serve; serve()"
)


@engines.register("processes")
@dataclass(frozen=True)
class Processes(Engine):
    """Fresh processes of this machine, `workers` of them, by default one for each processor.

    Each runs one thread, set before numpy loads: several processes of several threads each are
    many times slower. A worker that dies is replaced and its task given to another; so is one
    that has not answered within `timeout` seconds, and its task is answered with an error.
    """

    workers: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SearchError(f"processes: workers is {self.workers}", hint="use 1 or more")
        if self.timeout is not None and not self.timeout > 0:
            raise SearchError(f"processes: timeout is {self.timeout}", hint="give seconds above 0")

    def open(self, work: Work) -> Pool:
        if worker.serving:
            raise SearchError(
                "a worker was asked to start workers",
                hint="put what your script runs under `if __name__ == '__main__':`",
            )
        return Crew(_Local(_packed(work)), self.workers or processors(), self.timeout)


def _packed(work: Work) -> bytes:
    """Return the first message to a worker: the script that it needs, and the pickled work."""
    try:
        text = pickle.dumps(work)
    except Exception as error:
        raise SearchError(
            f"the work cannot be sent to workers: {error}",
            hint="define evaluators in a module, or use `engine: serial`",
        ) from error
    script = getattr(sys.modules["__main__"], "__file__", "") if b"__main__" in text else ""
    return pickle.dumps((script or "", text))


@dataclass(frozen=True)
class _Local(Staff):
    message: bytes

    def hire(self) -> Worker:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads(1)},
            start_new_session=True,
        )
        assert process.stdin and process.stdout
        reading = Connection(os.dup(process.stdout.fileno()), writable=False)
        writing = Connection(os.dup(process.stdin.fileno()), readable=False)
        process.stdin.close()
        process.stdout.close()
        sending = Thread(target=_send, args=(writing, self.message), daemon=True)
        sending.start()
        return _Process(process, reading, writing, sending)

    def wait(self, workers: Sequence[Worker], seconds: float | None) -> None:
        wait([cast(_Process, hired).reading for hired in workers], seconds)


@dataclass(frozen=True)
class _Process(Worker):
    """A process with a pipe to it and one from it; `sending` ends when it knows the work."""

    process: subprocess.Popen[bytes]
    reading: Connection
    writing: Connection
    sending: Thread

    def give(self, tasks: Sequence[tuple[int, Task]]) -> None:
        _send(self.writing, pickle.dumps(tuple(tasks)))

    def reports(self) -> list[Report]:
        found = []
        try:
            while self.reading.poll():
                kind, ticket, content, text = self.reading.recv()
                if kind == "answer":
                    found.append(Report(kind, ticket, done=content))
                else:
                    found.append(Report(kind, ticket, error=content, text=text))
        except (EOFError, OSError):
            found.append(Report("dead"))
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.sending.join()
        self.reading.close()
        self.writing.close()


def _send(writing: Connection, message: bytes) -> None:
    """Send what is pickled already; a worker that is dead says so by itself."""
    with suppress(OSError):
        writing.send_bytes(message)
