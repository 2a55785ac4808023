"""Make `tnc.passes` and `tnc.specs` importable from a checkout that is not installed.

In a wheel and in an editable install setuptools maps both names to the folders beside `tnc/`.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_FOLDERS = {f"tnc.{name}": _HERE.parent / name for name in ("passes", "specs")}


class _Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = _FOLDERS.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def install() -> None:
    """Add the two-name finder when `tnc` runs from its own checkout."""
    from_checkout = (_HERE.parent / "pyproject.toml").is_file() and not (_HERE / "passes").exists()
    if from_checkout and _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
