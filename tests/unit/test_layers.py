"""Imports go down or stay inside a package; registries alone know concrete things."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = (
    {"errors", "_checkout", "_transformers", "files", "interrupts", "__init__"},
    {"registry"},
    {"net"},
    {"derive"},
    {"structures", "sources"},
    {"decide"},
    {"explore"},
    {"kernels"},
    {"capture", "fit", "nn", "optim"},
    {"rewrite"},
    {"searching", "binding"},
    {"planner", "passes", "artifact", "rank_adaptation"},
    {"allocators", "adapters"},
    {"distilling"},
    {"api"},
    {"report", "inputs"},
    {"stream"},
    {"recipe"},
    {"adapt_recipe"},
    {"merge_recipe"},
    {"commands"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WALKED = {"structures", "passes", "fit", "allocators"}
"""Packages whose files register something: only their own package may import a file of theirs."""


def imports_of(source: str) -> set[tuple[str, ...]]:
    """Return the dotted names that a module imports from tnc, split at the dots."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            base = tuple(node.module.split("."))
            found |= {(*base, alias.name) for alias in node.names} if base == ("tnc",) else {base}
    return {name for name in found if name[0] == "tnc" and len(name) > 1}


def upward(package: str, source: str) -> list[str]:
    """Return what a module of `package` imports from a higher layer, or from a sibling."""
    wrong = []
    for name in sorted(imports_of(source)):
        other = name[1]
        if other == package or other not in LEVEL or LEVEL[other] < LEVEL[package]:
            continue
        wrong.append(".".join(name))
    return wrong


def modules() -> list[tuple[str, Path]]:
    found = []
    for folder in (ROOT / "tnc", ROOT / "passes"):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).parts
            package = inside[0].removesuffix(".py") if folder.name == "tnc" else "passes"
            found.append((package, path))
    return found


# Imports inside of functions that are lazy on purpose: a lower layer hands over to a higher one.
LAZY = {
    ("_transformers", "tnc.artifact.quantizer"),
    ("artifact", "tnc.passes.densify"),
    ("api", "tnc.passes.densify"),
}


@pytest.mark.parametrize(("package", "path"), modules(), ids=lambda v: str(v)[-40:])
def test_imports_go_down(package: str, path: Path) -> None:
    if path == ROOT / "tnc" / "__init__.py":
        return
    wrong = [n for n in upward(package, path.read_text()) if (package, n) not in LAZY]
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}: its layer is {LEVEL[package]}"


def test_every_package_has_a_layer() -> None:
    assert not {package for package, _ in modules()} - set(LEVEL)


def test_the_check_can_fail() -> None:
    assert upward("net", "from tnc.derive import cost") == ["tnc.derive"]
    assert upward("fit", "import tnc.nn") == ["tnc.nn"]
    assert not upward("nn", "from tnc.net import Structure")
