"""What becomes of the state of a weight's cores: a table, whose first row that holds decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LOSSY = 0.02
"""Relative error of a weight from which a state of unknown scale is not moved."""

LOST = 0.6
"""Relative error of a weight from which `auto` moves nothing: at .57 moving was still better than
starting anew, at .65 worse, whatever the second moments (`benchmarks/continuation.py`)."""

WORTHLESS = 1.0
"""Relative error of zeros."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What to do with the cores of one weight: move their state or not, and by what factor."""

    moves: bool
    reason: str
    ratio: float = float("nan")
    lost: bool = False


class Seen(NamedTuple):
    """What the probe's gradients say: a finding, their ratio to what moved, what they miss."""

    finding: str
    ratio: float = float("nan")
    missing: str = ""


class Row(NamedTuple):
    """Conditions and the verdict where all of them hold; an empty one always does.

    `policy` is that which was asked for. `slots` is what would move: 'momenta' alone, with 'grams',
    or with 'squares' that have no exact way. `probe` is 'none', 'useless' (nothing has a scale that
    it could give) or 'given'. `error` is what the weight lost, at least: 'lossy', 'lost',
    'worthless'. `finding` is what the probe says: 'missed', 'apart' or 'fits'.
    """

    policy: str
    slots: str
    probe: str
    error: str
    finding: str
    moves: bool
    reason: str


GONE = "the weight lost {error:.2g} of its norm"
OTHER = "its cores are farther from it than zeros are: they stand for another weight"
NO_PROBE = "no probe was given: the second moment's scale is unknown"
UNSCALED = "pulled, without a scale{also}"
EXACTLY = "momentum pulled exactly{also}"
NO_SCALE = "pulled; the second moment has no scale{also}"
UNFIT = "probe gradients do not fit the moved second moment{also}"
FROM_PROBE = "momentum pulled, second moment from the probe"
SCALED = "momentum pulled exactly, second moment scaled by the probe"
CONFIRMED = "momentum pulled exactly, confirmed by the probe"
MISSED = "no probe gradient reached {missing}"

# fmt: off
ROWS = (
    #   policy   slots      probe      error        finding   moves  reason
    Row("reset", "",        "",        "",          "",       False, "policy reset"),
    Row("auto",  "",        "",        "worthless", "",       False, OTHER),
    Row("pull",  "squares", "",        "",          "",       True,  NO_SCALE),
    Row("pull",  "",        "",        "",          "",       True,  "pulled, exactly{also}"),
    Row("",      "squares", "none",    "",          "",       False, NO_PROBE),
    Row("auto",  "squares", "useless", "lossy",     "",       False, GONE),
    Row("auto",  "grams",   "none",    "lossy",     "",       False, GONE),
    Row("auto",  "grams",   "useless", "lossy",     "",       False, GONE),
    Row("",      "squares", "useless", "",          "",       True,  UNSCALED),
    Row("",      "grams",   "none",    "",          "",       True,  EXACTLY),
    Row("",      "grams",   "useless", "",          "",       True,  EXACTLY),
    Row("",      "momenta", "none",    "",          "",       True,  "pulled, exactly{also}"),
    Row("",      "momenta", "useless", "",          "",       True,  "pulled, exactly{also}"),
    Row("auto",  "",        "given",   "lost",      "",       False, GONE),
    Row("",      "",        "given",   "",          "missed", False, MISSED),
    Row("probe", "",        "given",   "",          "",       True,  FROM_PROBE),
    Row("",      "",        "given",   "",          "apart",  False, UNFIT),
    Row("",      "squares", "given",   "",          "fits",   True,  SCALED),
    Row("",      "",        "given",   "",          "fits",   True,  CONFIRMED),
)
# fmt: on


def verdict_of(
    policy: str, slots: str, probe: str, error: float, looks: Callable[[], Seen]
) -> Verdict:
    """Return the verdict of the first row that holds; `looks` asks the probe, where a row does."""
    limits = {"lossy": error > LOSSY, "lost": error > LOST, "worthless": error >= WORTHLESS}
    also = f"; the weight lost {error:.2g} of its norm" if error > LOSSY else ""
    seen = Seen("")
    for row in ROWS:
        known = (policy, slots, probe)
        if any(wanted and wanted != found for wanted, found in zip(row, known)):
            continue
        if row.error and not limits[row.error]:
            continue
        if row.finding:
            seen = seen if seen.finding else looks()
            if row.finding != seen.finding:
                continue
        told = row.reason.format(error=error, also=also, missing=seen.missing)
        return Verdict(row.moves, told, seen.ratio, row.error == "lost")
    raise AssertionError(f"no row for {policy}, {slots}, {probe}")
