"""Optimizers: what their state is, how it follows parameters, and rules with structured state.

Every registered rule is here by the name of its class: `tnc.optim.GaLore`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "FORMS": "forms",
    "Form": "kinds",
    "Kind": "kinds",
    "Maps": "moving",
    "Together": "together",
    "build": "building",
    "follow": "following",
    "form_of": "forms",
    "move_": "moving",
    "refusal": "moving",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from tnc.optim.building import build as build
    from tnc.optim.following import follow as follow
    from tnc.optim.forms import FORMS as FORMS
    from tnc.optim.forms import form_of as form_of
    from tnc.optim.kinds import Form as Form
    from tnc.optim.kinds import Kind as Kind
    from tnc.optim.moving import Maps as Maps
    from tnc.optim.moving import move_ as move_
    from tnc.optim.moving import refusal as refusal
    from tnc.optim.together import Together as Together


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"tnc.optim.{_PUBLIC[name]}"), name)
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
