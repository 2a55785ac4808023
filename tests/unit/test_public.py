"""The public surface is light, and no name of it is hidden by a folder of the package."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from types import ModuleType

import tnc


def test_public_names_are_no_modules() -> None:
    folders = {module.name for module in pkgutil.iter_modules(tnc.__path__)}
    hidden = sorted(folders & set(tnc.__all__))
    assert not hidden, f"importing tnc.{hidden} replaces the function of that name"
    for name in tnc.__all__:
        assert not isinstance(getattr(tnc, name), ModuleType)


def test_importing_tnc_does_not_import_torch() -> None:
    light = "import sys, tnc; sys.exit('torch' in sys.modules)"
    heavy = "import sys, tnc; tnc.StructuredLayer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 1


def test_optimizers_are_there_by_name_when_asked_for() -> None:
    asked = "import sys, tnc; found = tnc.optim.GaLore, tnc.optim.build, tnc.follow, tnc.bind"
    told = f"{asked}; sys.exit('optim' not in dir(tnc) or not all(map(callable, found)))"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
