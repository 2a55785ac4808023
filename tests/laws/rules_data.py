"""Test data: options with which every optimizer rule meets the laws; one entry a rule at most."""

from __future__ import annotations

OPTIONS: dict[str, dict[str, object]] = {
    "coap": {"rank": 3, "update_every": 2, "refresh_every": 6, "restore": True},
    "dion": {"rank": 4},
    "efcp": {"lr": 0.02, "window": 8, "density": 0.1, "block": 64, "damping": 1e-3},
    "factor-adam-matrix": {"others": "plain"},
    "flora": {"rank": 3, "update_every": 4},
    "fira": {"rank": 3, "update_every": 4},
    "egn": {"loss": "squared"},
    "galore": {"rank": 3, "update_every": 4},
    "lanton": {"norm": "frobenius", "lr": 1e-2, "alpha": 0.1},
    "ldadam": {"rank": 3},
    "mfac": {"lr": 0.02, "window": 8, "damping": 0.1},
    "mkor": {"update_every": 4, "others": "plain"},
    "online-subspace-descent": {"rank": 3},
    "sara": {"rank": 3, "update_every": 4},
    "scaledgd": {"others": "plain"},
    "shampoo": {"update_every": 4, "block": 12},
    "sn-sm": {"rank": 3, "update_every": 4},
    "soap": {"update_every": 4},
    "structured-ngd": {"update_every": 4, "others": "plain"},
    "trust-region": {"norm": "infinity"},
}
"""Rules that are not named are built with their defaults."""
