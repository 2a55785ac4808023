"""Adapters: deltas of any structure beside frozen weights, by named methods."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "AdapterPlan": "tnc.decide.adapter_plan",
    "Adapters": "tnc.adapters.adapters",
    "Method": "tnc.adapters.method",
    "Parts": "tnc.adapters.start",
    "Rule": "tnc.adapters.rules",
    "Start": "tnc.adapters.start",
    "adapt": "tnc.adapters.adapting",
    "adapt_": "tnc.adapters.adapting",
    "export_peft": "tnc.adapters.peft.exporting",
    "folded": "tnc.adapters.folding",
    "follow": "tnc.adapters.following",
    "import_peft": "tnc.adapters.peft.importing",
    "import_peft_": "tnc.adapters.peft.importing",
    "load": "tnc.adapters.storing",
    "load_": "tnc.adapters.storing",
    "of": "tnc.adapters.adapters",
    "plan": "tnc.adapters.adapting",
    "save": "tnc.adapters.storing",
}

__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from tnc.adapters.adapters import Adapters as Adapters
    from tnc.adapters.adapters import of as of
    from tnc.adapters.adapting import adapt as adapt
    from tnc.adapters.adapting import adapt_ as adapt_
    from tnc.adapters.adapting import plan as plan
    from tnc.adapters.folding import folded as folded
    from tnc.adapters.following import follow as follow
    from tnc.adapters.method import Method as Method
    from tnc.adapters.peft.exporting import export_peft as export_peft
    from tnc.adapters.peft.importing import import_peft as import_peft
    from tnc.adapters.peft.importing import import_peft_ as import_peft_
    from tnc.adapters.rules import Rule as Rule
    from tnc.adapters.start import Parts as Parts
    from tnc.adapters.start import Start as Start
    from tnc.adapters.storing import load as load
    from tnc.adapters.storing import load_ as load_
    from tnc.adapters.storing import save as save
    from tnc.decide.adapter_plan import AdapterPlan as AdapterPlan


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tnc.adapters' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
