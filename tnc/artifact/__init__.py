"""Artifacts: a folder with safetensors, one manifest, and what is needed to run again.

No pickle anywhere. Loading needs the layers and this loader alone, no passes and no search.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tnc.artifact.loading import load
from tnc.artifact.manifest import Manifest

if TYPE_CHECKING:
    from tnc.artifact.exporting import export
    from tnc.artifact.optimizer import load_optimizer
    from tnc.artifact.saving import save
    from tnc.artifact.verifying import Verified, verify

__all__ = ["Manifest", "Verified", "export", "load", "load_optimizer", "save", "verify"]

_LATER = {
    "Verified": "verifying",
    "export": "exporting",
    "load_optimizer": "optimizer",
    "save": "saving",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'tnc.artifact' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tnc.artifact.{_LATER[name]}"), name)
