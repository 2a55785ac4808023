"""tnc: a declarative tensor-network and structured-layer compiler for PyTorch.

`import tnc` is light: torch is imported when a function first needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tnc import _checkout, _transformers

_checkout.install()
_transformers.announce()

__version__ = "0.1.0"

_PUBLIC = {
    "adapt": "tnc.adapters",
    "adapt_": "tnc.adapters",
    "adapt_ranks": "tnc.rank_adaptation.ranks",
    "bind": "tnc.binding",
    "follow": "tnc.binding",
    "compensate": "tnc.api",
    "compile": "tnc.api",
    "densify": "tnc.api",
    "distill": "tnc.distilling",
    "export": "tnc.artifact",
    "load": "tnc.artifact",
    "load_optimizer": "tnc.artifact",
    "measure": "tnc.api",
    "plan": "tnc.api",
    "save": "tnc.artifact",
    "search": "tnc.searching.api",
    "trace": "tnc.api",
    "tune": "tnc.nn.tuning",
    "verify": "tnc.artifact",
    "Plan": "tnc.decide.plan",
    "Spec": "tnc.decide.spec",
    "Structure": "tnc.net",
    "StructuredLayer": "tnc.nn",
    "TncError": "tnc.errors",
}

_PACKAGES = ("adapters", "optim")

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from tnc import adapters as adapters
    from tnc import optim as optim
    from tnc.adapters.adapting import adapt as adapt
    from tnc.adapters.adapting import adapt_ as adapt_
    from tnc.api import compensate as compensate
    from tnc.api import compile as compile
    from tnc.api import densify as densify
    from tnc.api import measure as measure
    from tnc.api import plan as plan
    from tnc.api import trace as trace
    from tnc.artifact import export as export
    from tnc.artifact import load as load
    from tnc.artifact import load_optimizer as load_optimizer
    from tnc.artifact import save as save
    from tnc.artifact import verify as verify
    from tnc.binding.bind import bind as bind
    from tnc.binding.resuming import follow as follow
    from tnc.decide.plan import Plan as Plan
    from tnc.decide.spec import Spec as Spec
    from tnc.distilling import distill as distill
    from tnc.errors import TncError as TncError
    from tnc.net import Structure as Structure
    from tnc.nn import StructuredLayer as StructuredLayer
    from tnc.nn.tuning import tune as tune
    from tnc.rank_adaptation.ranks import adapt_ranks as adapt_ranks
    from tnc.searching.api import search as search


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"tnc.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tnc' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
