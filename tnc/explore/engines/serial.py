"""The serial engine: evaluations run in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tnc.explore.engine import Done, Engine, Pool, Task, Work, engines


@engines.register("serial")
@dataclass(frozen=True)
class Serial(Engine):
    """No worker: a candidate that hangs or kills its process takes the run with it."""

    def open(self, work: Work) -> Pool:
        return _Here(work)


@dataclass
class _Here(Pool):
    work: Work

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Done]]:
        for number, task in enumerate(tasks):
            yield number, self.work(task)

    def close(self) -> None:
        """There is nothing to stop."""
