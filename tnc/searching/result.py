"""What a search found, with the cores of every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tnc.explore import Found, Scored, Topology
from tnc.explore.evaluator import Array, dense
from tnc.explore.record_sqlite import SqliteRecord
from tnc.explore.run import Counts
from tnc.explore.waiting import Waiting
from tnc.net import Network, Structure, print_network

if TYPE_CHECKING:
    from tnc.searching.spec import SearchSpec


@dataclass(frozen=True)
class Candidate:
    """A network that was fitted: its score, its metrics, its cores."""

    scored: Scored
    cores: tuple[Array, ...] | None

    @property
    def score(self) -> float:
        """The objective's value."""
        return self.scored.score

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers by name: `rse`, `ratio`, `params`, and what the evaluator counts."""
        return self.scored.outcome.metrics

    @property
    def topology(self) -> Topology:
        """Which cores share a bond, and of what size."""
        return self.scored.trial.topology

    @property
    def network(self) -> Network:
        """The network, with all modes as outputs."""
        return self.topology.network()

    @property
    def structure(self) -> Structure:
        """The structure of that one network."""
        return Structure.of(self.network)

    def dense(self) -> Array:
        """Return the tensor that the cores stand for."""
        assert self.cores is not None
        return dense(self.cores, self.topology)

    def to_json(self) -> dict[str, Any]:
        """Write as plain data, without cores."""
        return {
            "key": self.scored.trial.key,
            "score": self.score,
            "metrics": dict(self.metrics),
            "topology": str(self.topology),
            "network": print_network(self.network),
        }


@dataclass(frozen=True)
class Result:
    """What a search found. `str` of it is one line on the best candidate."""

    found: Found
    record: SqliteRecord | None
    spec: SearchSpec

    @property
    def best(self) -> Candidate | None:
        """The candidate of the best score, None when none was fitted."""
        return None if self.found.best is None else self._candidate(self.found.best)

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats in both size and error, by size."""
        return tuple(map(self._candidate, self.found.front))

    @property
    def counts(self) -> Counts:
        """What was asked for, counted apart."""
        return self.found.counts

    @property
    def ended(self) -> str:
        """Why the search ended; empty where it can go on."""
        return self.found.ended

    def ranked(self, count: int) -> list[Candidate]:
        """Return the best candidates by score, each topology once."""
        ranked: dict[str, Scored] = {}
        for told in sorted(self.found.trials, key=lambda told: told.score):
            if told.outcome.ok and told.score < float("inf"):
                ranked.setdefault(told.trial.topology.key, told)
        return [self._candidate(told) for told in list(ranked.values())[:count]]

    def save(self, path: str | Path) -> None:
        """Write the folder of a run, which `tnc search` shows, exports and goes on with."""
        from tnc.searching.folder import RunFolder

        assert self.record is not None
        folder = RunFolder.create(Path(path), self.spec, self.record.work, run=self.record.run)
        self.record.save(folder.record)
        asked = [told.trial.key for told in self.found.trials]
        counts = asdict(self.counts)
        folder.log(Waiting(), "round", round=counts["rounds"], asked=asked, counts=counts,
                   best=None, spent=round(self.found.spent, 3))  # fmt: skip
        folder.log(Waiting(), "end", ended=self.ended, counts=counts)

    def to_json(self, count: int = 10) -> dict[str, Any]:
        """Write as plain data: why it ended, counts, the best candidates and the front."""
        return {
            "ended": self.ended,
            "counts": asdict(self.counts),
            "seconds": round(self.found.spent, 3),
            "best": [candidate.to_json() for candidate in self.ranked(count)],
            "front": [candidate.to_json() for candidate in self.front],
        }

    def __str__(self) -> str:
        best = self.found.best
        if best is None:
            return f"nothing was found in {len(self.found.trials)} evaluations"
        params = best.trial.topology.parameters
        return (
            f"score {best.score:.5g} after {len(self.found.trials)} evaluations: {params:,} "
            f"parameters, squared relative error {best.rse:.3g}, {best.trial.topology}"
        )

    def _candidate(self, told: Scored) -> Candidate:
        cores = self.record.cores(told.trial.key) if self.record else None
        return Candidate(told, cores)
