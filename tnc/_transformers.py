"""Announce tnc to transformers, without importing it: see `tnc.artifact.hugging`."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

METHOD = "tnc"
_MODULE = "transformers.quantizers.auto"


class _Finder(importlib.abc.MetaPathFinder):
    """Registers the quantizer at the moment when transformers' own are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            _register(module)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def announce() -> None:
    """Register tnc with transformers: now if its quantizers are imported, else when they are."""
    if _MODULE in sys.modules:
        _register(sys.modules[_MODULE])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    known = getattr(module, "AUTO_QUANTIZER_MAPPING", {})
    if METHOD in known or not hasattr(module, "register_quantizer"):
        return
    # It registers itself at its end. Here it may be half imported: if it was imported first, its
    # own import of transformers' base class is what led here.
    import tnc.artifact.quantizer  # noqa: F401
