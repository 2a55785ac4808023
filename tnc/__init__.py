"""tnc: a declarative tensor-network and structured-layer compiler for PyTorch.

`import tnc` is light: torch is imported when a function first needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tnc import _checkout

_checkout.install()

__version__ = "0.1.0"

_PUBLIC = {
    "capture": "tnc.api",
    "compile": "tnc.api",
    "densify": "tnc.api",
    "export": "tnc.api",
    "load": "tnc.artifact",
    "measure": "tnc.api",
    "plan": "tnc.api",
    "save": "tnc.api",
    "verify": "tnc.artifact",
    "Plan": "tnc.decide.plan",
    "Spec": "tnc.decide.spec",
    "Structure": "tnc.net",
    "StructuredLayer": "tnc.nn",
    "TncError": "tnc.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]  # noqa: PLE0604

if TYPE_CHECKING:
    from tnc.api import capture, compile, densify, export, measure, plan, save
    from tnc.artifact import load, verify
    from tnc.decide.plan import Plan
    from tnc.decide.spec import Spec
    from tnc.errors import TncError
    from tnc.net import Structure
    from tnc.nn import StructuredLayer


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tnc' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
