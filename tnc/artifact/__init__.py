"""Artifacts: a folder with safetensors, one manifest, and what is needed to run again.

No pickle anywhere. Loading needs the layers and this loader alone, no passes and no search.
"""

from tnc.artifact.loading import load
from tnc.artifact.manifest import Manifest
from tnc.artifact.verifying import Verified, verify

__all__ = ["Manifest", "Verified", "export", "load", "save", "verify"]


def __getattr__(name: str) -> object:
    if name == "save":
        from tnc.artifact.saving import save

        return save
    if name == "export":
        from tnc.artifact.exporting import export

        return export
    raise AttributeError(f"module 'tnc.artifact' has no attribute {name!r}")
