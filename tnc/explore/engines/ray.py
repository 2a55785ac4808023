"""The engine of many machines: actors of a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tnc.errors import MissingExtra, SearchError
from tnc.explore.crew import Crew, Report, Staff, Worker
from tnc.explore.engine import Engine, Pool, Task, Work, engines, processors, threads

_FETCH = 30.0
"""Seconds in which an answer that is there has to arrive."""


@engines.register("ray")
@dataclass(frozen=True)
class Ray(Engine):
    """Actors of one processor and one thread each; `pip install 'tnc[ray]'`.

    Without an `address` Ray is started on this machine and stopped at the end; `auto` or
    `HOST:6379` joins a cluster (`ray start --head`), whose machines need the same packages.
    `workers` is by default one for each processor that the cluster has now. The work lies in the
    object store once for each machine. A worker that dies, alone or with its machine, is replaced
    and its task given to another; so is one that has not answered within `timeout` seconds, and
    its task is answered with an error.
    """

    workers: int | None = None
    timeout: float | None = None
    address: str = ""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise SearchError(f"ray: workers is {self.workers}", hint="use 1 or more")
        if self.timeout is not None and not self.timeout > 0:
            raise SearchError(f"ray: timeout is {self.timeout}", hint="give seconds above 0")

    def check(self) -> None:
        _ray()

    def open(self, work: Work) -> Pool:
        ray = _ray()
        begun = not ray.is_initialized()
        if begun:
            _begin(ray, self.address, self.workers)
        count = self.workers or int(ray.cluster_resources().get("CPU", 1)) or 1
        try:
            return Crew(_Cluster(ray, ray.put(work), begun), count, self.timeout)
        except BaseException:
            if begun:
                ray.shutdown()
            raise


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("the engine 'ray' needs ray", hint="pip install 'tnc[ray]'") from error
    return ray


def _begin(ray: Any, address: str, workers: int | None) -> None:
    """Join the cluster at an address, or start one here; our variables go to every worker."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        options["address"] = address
    else:
        options |= {"num_cpus": workers or processors(), "include_dashboard": False}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise SearchError(
            f"cannot {'reach' if address else 'start'} Ray: {error}",
            where=address,
            hint="`ray start --head` prints the address of a cluster",
        ) from error


@dataclass(frozen=True)
class _Cluster(Staff):
    """Ray, the work in its store, and whether it was started for this pool."""

    ray: Any
    work: Any
    begun: bool

    def hire(self) -> Worker:
        options = {
            "num_cpus": 1,
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": threads(1)},
        }
        actor = self.ray.remote(_Serving).options(**options).remote(self.work)
        return _Actor(self.ray, actor, deque([(-1, actor.ready.remote())]))

    def wait(self, workers: Sequence[Worker], seconds: float | None) -> None:
        actors = [cast(_Actor, hired) for hired in workers]
        begun = [actor.promises[0][1] for actor in actors if actor.promises]
        self.ray.wait(begun, num_returns=1, timeout=seconds, fetch_local=False)

    def close(self) -> None:
        if self.begun:
            self.ray.shutdown()


@dataclass(frozen=True)
class _Actor(Worker):
    """An actor and what it has promised, with tickets, in the order in which it will be there."""

    ray: Any
    actor: Any
    promises: deque[tuple[int, Any]] = field(default_factory=deque)

    def give(self, tasks: Sequence[tuple[int, Task]]) -> None:
        for ticket, task in tasks:
            self.promises.append((ticket, self.actor.answer.remote(task)))

    def reports(self) -> list[Report]:
        found: list[Report] = []
        while self.promises:
            ticket, promise = self.promises[0]
            done, _ = self.ray.wait([promise], num_returns=1, timeout=0, fetch_local=False)
            if not done:
                break
            self.promises.popleft()
            found.append(self._report(ticket, promise))
            if found[-1].kind == "dead":
                break
        return found

    def stop(self) -> None:
        self.ray.kill(self.actor, no_restart=True)

    def _report(self, ticket: int, promise: Any) -> Report:
        errors = self.ray.exceptions
        try:
            content = self.ray.get(promise, timeout=_FETCH)
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None)
            return Report("raised", ticket, error=cause, text=str(error))
        except errors.RayError as error:
            return Report("dead", text=str(error))
        return Report("ready") if ticket < 0 else Report("answer", ticket, done=content)


class _Serving:
    """What runs at the other end: the work, given once, and one task after another."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def ready(self) -> None:
        """Return nothing: it is enough that this was run."""

    def answer(self, task: Task) -> Any:
        """Return what the work makes of a task."""
        return self._work(task)
