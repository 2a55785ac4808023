"""The values that options of optimizers may have, by the names that all rules use."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from tnc.errors import BindError

RANGES: Mapping[str, tuple[float, float]] = {
    "lr": (0.0, inf),
    "eps": (0.0, inf),
    "weight_decay": (0.0, inf),
    "momentum": (0.0, 1.0),
    "betas": (0.0, 1.0),
    "beta": (0.0, 1.0),
    "scale": (0.0, inf),
    "density": (0.0, 1.0),
    "damping": (0.0, inf),
    "rho": (0.0, inf),
    "projector_lr": (0.0, inf),
    "mixing": (0.0, 1.0),
    "growth": (0.0, 1.0),
    "decay_rate": (0.0, inf),
    "scale_floor": (0.0, inf),
    "limit": (1.0, inf),
    "quantile": (0.0, 1.0),
    "rest_scale": (0.0, inf),
}
"""Inclusive bounds; every entry of a tuple must lie within."""

COUNTS = frozenset(
    {
        "rank",
        "update_every",
        "refresh_every",
        "steps",
        "block",
        "window",
        "iterations",
        "subset_size",
    }
)
"""Options that are whole numbers of 1 or more."""


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raise BindError for an option out of its range."""
    for name, value in options.items():
        if name in COUNTS and value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BindError(f"{kind}: {name} is {value!r}", hint="give a whole number from 1")
        elif name in RANGES and value is not None:
            low, high = RANGES[name]
            for part in value if isinstance(value, tuple | list) else (value,):
                if not low <= float(part) <= high:
                    raise BindError(
                        f"{kind}: {name} is {value!r}",
                        hint=f"give {low:g} or more"
                        + (f", {high:g} at most" if high < inf else ""),
                    )
