"""A pool of workers that may die or hang: who works at what, who is replaced, what is answered."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Literal

from tnc.errors import SearchError
from tnc.explore.engine import Done, Pool, Task
from tnc.explore.trial import Outcome

KILLS = 3
"""A task that was being worked on at so many deaths is answered with an error."""
BIRTHS = 30
"""So many workers in a row may die before they are ready; `KILLS` where none ever was."""
AHEAD = 0.05
"""Seconds of work that a worker holds beyond the task it is at, so that it never waits for us."""
PATIENCE = 120.0
"""Seconds until one of the workers has to be ready."""


@dataclass(frozen=True)
class Report:
    """What a worker says: it is ready, has an answer, let an exception out, or is no more."""

    kind: Literal["ready", "answer", "raised", "unable", "dead"]
    ticket: int = -1
    done: Done | None = None
    error: BaseException | None = None
    text: str = ""


class Worker(ABC):
    """A process, here or elsewhere, that knows the work and takes tasks one after another."""

    @abstractmethod
    def give(self, tasks: Sequence[tuple[int, Task]]) -> None:
        """Send tasks with their tickets. A worker that is dead says so among its reports."""

    @abstractmethod
    def reports(self) -> list[Report]:
        """Return what has come from it, without waiting; a dead worker's last report is `dead`."""

    @abstractmethod
    def stop(self) -> None:
        """End it at once, whatever it is at."""


class Staff(ABC):
    """Where workers come from."""

    @abstractmethod
    def hire(self) -> Worker:
        """Start a worker, without waiting until it is ready."""

    @abstractmethod
    def wait(self, workers: Sequence[Worker], seconds: float | None) -> None:
        """Return when one of them has something to report, or after some seconds."""

    def close(self) -> None:  # noqa: B027 most staffs hold nothing
        """Give back what is held besides the workers."""


@dataclass
class _Post:
    """A worker, the tickets it holds (it is at the first), and since when it is at that."""

    worker: Worker
    since: float
    ready: bool = False
    held: deque[int] = field(default_factory=deque)


@dataclass
class Crew(Pool):
    """Hand tasks to the workers of a staff; replace those that die or exceed `timeout` seconds."""

    staff: Staff
    workers: int
    timeout: float | None = None
    _posts: list[_Post] = field(default_factory=list)
    _tasks: dict[int, Task] = field(default_factory=dict)
    _todo: deque[int] = field(default_factory=deque)
    _deaths: Counter[int] = field(default_factory=Counter)
    _tickets: int = 0
    _stillborn: int = 0
    _ever: bool = False
    _seconds: float = float("inf")

    def __post_init__(self) -> None:
        try:
            self._fill(self.workers)
        except BaseException:
            self.close()
            raise

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
        first, self._tickets = self._tickets, self._tickets + len(tasks)
        self._tasks = dict(zip(range(first, self._tickets), tasks))
        self._todo, self._deaths = deque(self._tasks), Counter()
        while self._tasks:
            self._fill(min(self.workers, len(self._tasks)))
            self._hand_out()
            answers = [each for each in self._answers() if self._tasks.pop(each[0], None)]
            self._hand_out()
            for ticket, done in answers:
                yield ticket - first, done

    def close(self) -> None:
        for post in self._posts:
            post.worker.stop()
        self._posts.clear()
        self.staff.close()

    def _fill(self, count: int) -> None:
        while len(self._posts) < count:
            self._posts.append(_Post(self.staff.hire(), time.monotonic()))

    def _hand_out(self) -> None:
        """Give every worker that is ready something to do, a little ahead where tasks are short.

        Nobody is given more than a fair share of what is left.
        """
        ahead = ceil(AHEAD / self._seconds) if self._seconds else len(self._todo)
        for post in self._posts:
            share = ceil(len(self._todo) / (2 * len(self._posts)))
            missing = max(1, min(ahead, share)) - len(post.held)
            if post.ready and missing > 0 and self._todo:
                taken = [self._todo.popleft() for _ in range(min(missing, len(self._todo)))]
                if not post.held:
                    post.since = time.monotonic()
                post.held.extend(taken)
                post.worker.give([(ticket, self._tasks[ticket]) for ticket in taken])

    def _answers(self) -> list[tuple[int, Done]]:
        """Wait for reports, act on them, and return the answers among them.

        All reports are read before anybody is said to hang: this process may have been away.
        """
        self.staff.wait([post.worker for post in self._posts], self._until())
        found: list[tuple[int, Done]] = []
        for post in list(self._posts):
            reports = post.worker.reports()
            for report in reports:
                found += self._heard(post, report)
            if not reports:
                found += self._overdue(post)
        return found

    def _until(self) -> float | None:
        """Return the seconds until somebody may be overdue, None for never."""
        now = time.monotonic()
        ends = [post.since + PATIENCE for post in self._posts if not post.ready]
        if self.timeout is not None:
            ends += [post.since + self.timeout for post in self._posts if post.held]
        return max(0.0, min(ends) - now) if ends else None

    def _heard(self, post: _Post, report: Report) -> list[tuple[int, Done]]:
        if report.kind == "ready":
            post.ready, self._ever, self._stillborn = True, True, 0
        elif report.kind == "unable":
            raise SearchError(
                f"workers cannot load what they are to do: {report.text}",
                hint="evaluators and what they hold must be importable: define them in a module",
            )
        elif report.kind == "dead":
            return self._died(post, report.text)
        else:
            took = time.monotonic() - post.since
            self._seconds = took if self._seconds == float("inf") else (self._seconds + took) / 2
            post.since = time.monotonic()
            if report.ticket in post.held:
                post.held.remove(report.ticket)
            if report.kind == "raised" and report.ticket in self._tasks:
                raise report.error or SearchError(f"an evaluation failed: {report.text}")
            if report.done is not None:
                outcome, cores = report.done
                return [(report.ticket, (self._counted(report.ticket, outcome), cores))]
        return []

    def _died(self, post: _Post, text: str) -> list[tuple[int, Done]]:
        """Take a dead worker off and its tasks back; answer the one that has killed too many."""
        self._posts.remove(post)
        post.worker.stop()
        self._stillborn += not post.ready
        if self._stillborn >= (BIRTHS if self._ever else KILLS):
            raise SearchError(
                f"{self._stillborn} workers in a row died before they were ready"
                + (f": {text}" if text else ""),
                hint="mend what they say; `engine: serial` runs without workers",
            )
        self._deaths.update(list(post.held)[:1])
        fatal = [ticket for ticket in list(post.held)[:1] if self._deaths[ticket] >= KILLS]
        self._take_back(ticket for ticket in post.held if ticket not in fatal)
        outcome = Outcome(error=f"killed {KILLS} workers, one after another", lost=True)
        return [(ticket, (self._counted(ticket, outcome, 0), None)) for ticket in fatal]

    def _overdue(self, post: _Post) -> list[tuple[int, Done]]:
        """Replace a worker that has not answered in time, and answer for it."""
        waited = time.monotonic() - post.since
        if not post.ready and waited >= PATIENCE and not any(p.ready for p in self._posts):
            raise SearchError(
                f"no worker was ready after {PATIENCE:g} seconds",
                hint="ask for fewer workers, or see that the cluster has room for them",
            )
        if self.timeout is None or not post.held or waited < self.timeout:
            return []
        self._posts.remove(post)
        post.worker.stop()
        at, *ahead = post.held
        self._take_back(ahead)
        told = f"hung: no answer in {self.timeout:g} seconds"
        outcome = Outcome(error=told, seconds=self.timeout, lost=True)
        return [(at, (self._counted(at, outcome), None))]

    def _take_back(self, tickets: Iterable[int]) -> None:
        """Put tasks that nobody is at any more before all others, in their order."""
        back = [ticket for ticket in tickets if ticket in self._tasks]
        self._todo.extendleft(reversed(back))

    def _counted(self, ticket: int, outcome: Outcome, last: int = 1) -> Outcome:
        """Return an outcome with how often its task was begun."""
        attempts = self._deaths[ticket] + last
        return outcome if attempts <= 1 else replace(outcome, attempts=attempts)
