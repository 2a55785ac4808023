"""The table of verdicts: it answers everything, each row is reached, the probe is asked once."""

from __future__ import annotations

from itertools import product

import pytest

from tnc.binding.moments import POLICIES
from tnc.binding.verdicts import ROWS, Row, Seen, verdict_of

SLOTS, PROBES = ("momenta", "grams", "squares"), ("none", "useless", "given")
ERRORS, FINDINGS = (0.0, 0.1, 0.7, 1.2), ("missed", "apart", "fits")


def reached(rows: tuple[Row, ...], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return every case with its verdict."""
    monkeypatch.setattr("tnc.binding.verdicts.ROWS", rows)
    found = set()
    for policy, slots, probe, error, finding in product(POLICIES, SLOTS, PROBES, ERRORS, FINDINGS):
        asked: list[int] = []

        def looks(finding: str = finding, asked: list[int] = asked) -> Seen:
            asked.append(1)
            return Seen(finding, 2.0, "0.cores.A")

        verdict = verdict_of(policy, slots, probe, error, looks)
        found.add(f"{policy} {slots} {probe} {verdict.moves} {verdict.reason}")
        assert len(asked) <= (probe == "given")
        assert not (verdict.lost and asked), "what is lost is not measured"
        if asked:
            assert verdict.ratio == 2.0
    return found


def test_every_case_has_a_row_and_every_row_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reached(ROWS, monkeypatch)
    for place in range(len(ROWS)):
        rows = ROWS[:place] + ROWS[place + 1 :]
        try:
            left = reached(rows, monkeypatch)
        except AssertionError:
            continue  # a case without a row
        assert left != whole, f"row {place} changes nothing: {ROWS[place]}"
