"""Test data: options with which every optimizer rule meets the laws; one entry a rule at most."""

from __future__ import annotations

OPTIONS: dict[str, dict[str, object]] = {
    "coap": {"rank": 3, "update_every": 2, "refresh_every": 6, "restore": True},
    "dct-adamw": {"rank": 3, "lr": 0.01, "error_feedback": True},
    "dion": {"rank": 4},
    "efcp": {"lr": 0.02, "window": 8, "density": 0.1, "block": 64, "damping": 1e-3},
    "egn": {"loss": "squared"},
    "factor-adam-matrix": {"others": "plain"},
    "fira": {"rank": 3, "update_every": 4},
    "flora": {"rank": 3, "update_every": 4},
    "frugal": {"update_every": 4},
    "galore": {"rank": 3, "update_every": 4},
    "gradnorm-lorp": {"rank": 3, "update_every": 4, "lr": 0.01},
    "grass": {"rank": 3, "update_every": 4, "lr": 0.01, "choice": "norm"},
    "lanton": {"norm": "frobenius", "lr": 1e-2, "alpha": 0.1},
    "ldadam": {"rank": 3},
    "mfac": {"lr": 0.02, "window": 8, "damping": 0.1},
    "mkor": {"update_every": 4, "others": "plain"},
    "natural-galore": {"rank": 3, "update_every": 4, "window": 4},
    "online-subspace-descent": {"rank": 3},
    "sara": {"rank": 3, "update_every": 4},
    "scaledgd": {"others": "plain"},
    "shampoo": {"update_every": 4, "block": 12},
    "sn-sm": {"rank": 3, "update_every": 4},
    "soap": {"update_every": 4},
    "structured-ngd": {"update_every": 4, "others": "plain"},
    "tensor-galore": {"rank": 3, "update_every": 4},
    "trust-region": {"norm": "infinity"},
}
"""Rules that are not named are built with their defaults."""
