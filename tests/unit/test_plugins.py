"""Another package adds a structure: one file and an entry point, nothing edited here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STRUCTURE = '''
"""A low-rank structure with a diagonal between its factors."""

from dataclasses import dataclass

from tnc.net import Signature, parse_equation
from tnc.structures import Family, Template, families


@families.register("scaled-low-rank")
@dataclass(frozen=True)
class ScaledLowRank(Family):
    """W[o, i] = sum_r B[o, r] d[r] A[r, i]."""

    fit = "als"
    most: int = 64

    def refuses(self, signature: Signature) -> str:
        return "" if len(signature.inputs) == 1 else "only linear weights"

    def template(self, signature: Signature) -> Template:
        (o,), (i,) = signature.outputs, signature.inputs
        equation = parse_equation("B[o r] D[r] A[r i] : i -> o")
        return Template(signature, equation, (("o", o), ("i", i)), (("r", min(o, i, self.most)),))
'''

USE = """
import json, sys
import torch, tnc
from torch import nn
from tnc.decide.spec_schema import schema_text
from tnc.structures import families

found = {"listed": "scaled-low-rank" in families.all()}
found["schema"] = '"scaled-low-rank"' in schema_text()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
x = torch.randn(5, 12)
rule = {"match": "*", "structure": "scaled_low_rank{most=10}", "ranks": "full"}
made = tnc.compile(model, tnc.Spec(version=1, rules=[rule], metric="none"), example=x)
layer = made.model[0]
found["shapes"] = layer.structure.shapes
dense = nn.functional.linear(x, layer.weight, layer.bias)
found["forward"] = float((layer(x) - dense).detach().norm() / dense.detach().norm())
found["exact"] = float((made.model(x) - model(x)).detach().norm() / model(x).detach().norm())
found["reason"] = made.plan.entry("0.weight").family
tnc.save(made, sys.argv[1])
again = tnc.load(sys.argv[1], model=nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8)))
found["artifact"] = bool(torch.allclose(again(x), made.model(x), rtol=1e-5, atol=1e-6))
try:
    tnc.Spec(version=1, rules=[{**rule, "structure": "scaled-low-rank{mst=1}"}])
except tnc.TncError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""

LAWS = """
import sys, pytest
sys.exit(pytest.main(["-o", "addopts=-q", "-p", "no:cacheprovider", "tests/laws/test_structures.py",
                      "-k", "scaled-low-rank", "--collect-only"]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package of one module and its entry point."""
    folder = tmp_path / "site"
    (folder / "more_structures").mkdir(parents=True)
    (folder / "more_structures" / "__init__.py").touch()
    (folder / "more_structures" / "scaled.py").write_text(STRUCTURE)
    information = folder / "more_structures-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: more_structures\n"
                                          "Version: 1.0\n")  # fmt: skip
    (information / "entry_points.txt").write_text("[tnc.plugins]\nmore = more_structures.scaled\n")
    return folder


def run(code: str, folder: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, with a package on its path or without."""
    path = [str(ROOT), *([str(folder)] if folder else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_structure_of_another_package_is_a_structure(package: Path, tmp_path: Path) -> None:
    done = run(USE, package, str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["listed"] and found["schema"] and found["artifact"]
    assert found["shapes"] == {"B": [10, 10], "D": [10], "A": [10, 12]}
    assert found["forward"] < 1e-5 and found["exact"] < 1e-3
    assert found["reason"] == "scaled-low-rank{most=10}"
    assert "unknown key 'mst'; did you mean 'most'" in found["refused"]


def test_without_the_package_it_is_unknown(tmp_path: Path) -> None:
    done = run(USE, None, str(tmp_path / "made"))
    assert done.returncode != 0 and "no structure is named 'scaled_low_rank'" in done.stderr


def test_the_laws_find_it_without_being_told(package: Path) -> None:
    done = run(LAWS, package)
    assert "test_forward_is_the_dense_forward[scaled-low-rank" in done.stdout, done.stdout


def test_a_plug_in_that_fails_is_named(package: Path) -> None:
    (package / "more_structures" / "scaled.py").write_text("1 / 0\n")
    done = run("from tnc.structures import families; families.all()", package)
    assert done.returncode != 0 and "more" in done.stderr and "ZeroDivisionError" in done.stderr
