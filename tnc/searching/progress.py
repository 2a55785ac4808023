"""How far a search is, in words."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tnc.explore import Found, Limits


@dataclass
class Progress:
    """Tell the best so far, evaluations a second, hits, and the time that is left at most."""

    limits: Limits
    _first: float | None = None
    _begun: int = 0
    _count: int = -1
    _best: str = "nothing yet"
    _clock: float = field(default_factory=time.monotonic)

    def __call__(self, found: Found) -> str:
        counts, now = found.counts, time.monotonic()
        if self._count != len(found.trials):
            self._count = len(found.trials)
            best = found.best
            if best is not None:
                params = best.trial.topology.parameters
                self._best = f"best {best.score:.5g} ({params:,} params)"
        if counts.fitted and self._first is None:
            self._first, self._begun = self._clock, counts.evaluations
        self._clock = now if self._first is None else self._clock
        taken = 0.0 if self._first is None else now - self._first
        rate = counts.fitted / taken if taken else 0.0
        told = [self._best, f"{rate:.3g} evaluations/s" if rate else "", f"{counts.hits} hits"]
        left = self._left(found, rate, taken)
        told.append("" if left is None else f"{clock(left)} left")
        return ", ".join(filter(None, told))

    def _left(self, found: Found, rate: float, taken: float) -> float | None:
        """Return the seconds to the limit that comes first, None where none can be foreseen."""
        ends = []
        if self.limits.evaluations is not None and rate:
            ends.append((self.limits.evaluations - found.counts.evaluations) / rate)
        if self.limits.seconds is not None:
            ends.append(self.limits.seconds - self.limits.spent - taken)
        return max(0.0, min(ends)) if ends else None


def clock(seconds: float) -> str:
    """Write seconds as a clock does.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
