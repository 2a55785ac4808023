"""A worker process: told once what its work is, then sent tasks; it ends when its pipe does."""

from __future__ import annotations

import os
import pickle
import runpy
import sys
import traceback
import types
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from tnc.explore.engine import Work

serving = False
"""Whether this process is a worker: a worker has no workers."""


def serve() -> None:
    """Answer on the pipe that was standard output; what is printed goes to standard error.

    A thread reads, so that the other end never waits for a task to be finished, and so that this
    process ends at once when the other end is gone.
    """
    global serving
    serving = True
    reading = Connection(os.dup(0), writable=False)
    writing = Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        script, text = reading.recv()
        if script:
            _become(script)
        work: Work = pickle.loads(text)
        getattr(work, "warm", lambda: None)()
    except EOFError:
        os._exit(0)
    except BaseException as error:
        _tell(writing, ("unable", -1, None, "".join(traceback.format_exception_only(error))))
        os._exit(1)
    _tell(writing, ("ready", -1, None, ""))
    waiting: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_read, args=(reading, waiting), daemon=True).start()
    while True:
        for ticket, task in waiting.get():
            answer: tuple[str, int, Any, str]
            try:
                answer = ("answer", ticket, work(task), "")
            except BaseException as error:
                told = "".join(traceback.format_exception(error))
                answer = ("raised", ticket, _carried(error, told), told)
            _tell(writing, answer)


def _read(reading: Connection, waiting: SimpleQueue[Any]) -> None:
    while True:
        try:
            waiting.put(reading.recv())
        except (EOFError, OSError):
            os._exit(0)


def _tell(writing: Connection, answer: Any) -> None:
    try:
        writing.send(answer)
    except OSError:
        os._exit(0)


def _carried(error: BaseException, told: str) -> BaseException | None:
    """Return an exception that can be sent, with a note of where it came from; None if none can."""
    try:
        error.add_note(f"in a worker:\n{told}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error


def _become(script: str) -> None:
    """Run the script whose names the work uses, under the name that keeps its main part quiet."""
    module = types.ModuleType("__mp_main__")
    module.__dict__.update(runpy.run_path(script, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
