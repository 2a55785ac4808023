"""Test data: options with which optimizer rules meet the laws on small shapes.

Most follow from the names of a rule's options. `OPTIONS` is for rules that need others; most need
no entry.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from tnc.optim.declaring import MISSING, Declared

SMALL: dict[str, object] = {
    "rank": 3,
    "update_every": 4,
    "window": 8,
    "block": 12,
    "others": "plain",
    "error_feedback": True,
}
"""Values that show on matrices of 10 by 24, in 60 steps, what the defaults show on large ones."""

OPTIONS: dict[str, dict[str, object]] = {
    "coap": {"update_every": 2, "refresh_every": 6, "restore": True},
    "dct-adamw": {"update_every": 1, "lr": 0.01},
    "dion": {"rank": 4},
    "efcp": {"lr": 0.02, "density": 0.1, "block": 64, "damping": 1e-3},
    "gradnorm-lorp": {"lr": 0.01},
    "grass": {"lr": 0.01, "choice": "norm"},
    "lanton": {"norm": "frobenius", "lr": 1e-2, "alpha": 0.1},
    "mfac": {"lr": 0.02, "damping": 0.1},
    "trust-region": {"norm": "infinity"},
}


def options_for(name: str, rule: type[Declared]) -> dict[str, Any]:
    """Return the options that the laws build a rule with."""
    found: dict[str, Any] = {}
    for option, each in rule.options().items():
        if option in SMALL:
            found[option] = SMALL[option]
        elif each.default is MISSING:
            found[option] = _first(each.hint)
    return found | OPTIONS.get(name, {})


def _first(hint: Any) -> Any:
    """Return the first choice that a type names."""
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    return next(filter(None, map(_first, get_args(hint))), None)
