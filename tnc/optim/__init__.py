"""Optimizers: what their state is, how it follows parameters, and rules with structured state.

Every registered rule is here by the name of its class: `tnc.optim.GaLore`.
"""

from typing import Any

from tnc.optim.following import follow
from tnc.optim.kinds import FORMS, Form, Kind, form_of
from tnc.optim.moving import Maps, move_, refusal
from tnc.optim.together import Together

__all__ = ["FORMS", "Form", "Kind", "Maps", "Together", "follow", "form_of", "move_", "refusal"]


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # asked for by the import machinery; no rule is private
        raise AttributeError(f"module 'tnc.optim' has no attribute {name!r}")
    from tnc.optim.rule import rules

    for rule in rules.all().values():
        if rule.__name__ == name:
            return rule
    raise AttributeError(f"module 'tnc.optim' has no attribute {name!r}")


def __dir__() -> list[str]:
    from tnc.optim.rule import rules

    return sorted({*__all__, *(rule.__name__ for rule in rules.all().values())})
