"""Test data: options with which every optimizer rule meets the laws; one entry a rule at most."""

from __future__ import annotations

OPTIONS: dict[str, dict[str, object]] = {
    "galore": {"rank": 3, "update_every": 4},
}
"""Rules that are not named are built with their defaults."""
