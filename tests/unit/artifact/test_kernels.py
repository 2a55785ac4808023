"""Sources of kernels in artifacts: written if asked for, compared, told, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tnc
from tests.compiled import halved, spec
from tests.unit.artifact.conftest import SOURCE
from tnc.artifact import kernels as module
from tnc.artifact.manifest import NAME, checksum
from tnc.cli import main
from tnc.decide.spec import Spec
from tnc.decide.spec_parts import Kernels
from tnc.decide.spec_problems import SpecProblems
from tnc.kernels import outcome as outcomes
from tnc.kernels.choose import choose
from tnc.kernels.compiled import Kernel
from tnc.net import digest
from tnc.rewrite.contract import outputs_of


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))


def saved(folder: Path, **settings: Any) -> Path:
    made = halved("prime")
    return tnc.save(made, folder, source=SOURCE, kernels=Kernels(**{"rows": (1, 9), **settings}))


def sources(folder: Path) -> list[Path]:
    return sorted((folder / "kernels").glob("*.py"))


def resigned(folder: Path, name: str) -> None:
    """Let the manifest say that an edited file is as it was saved."""
    data = json.loads((folder / NAME).read_text())
    data.pop("digest")
    data["files"][name] = checksum(folder / name)
    (folder / NAME).write_text(json.dumps(data | {"digest": digest(data)}))


@pytest.mark.parametrize("tune", ["model", "measure"])
def test_sources_are_written_and_verified(tune: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", tune=tune)
    files = sources(folder)
    assert len(files) == 2 * 3  # three layers of different sizes, two buckets
    text = next(f for f in files if f.name.endswith("rows-16.py")).read_text()
    for told in ("# equation   B[o r] A[r i]", "9 to 16 rows, inference", "float32", "prices",
                 "predicted", "# sha256", "def forward(x, ", "never run"):  # fmt: skip
        assert told in text, text
    assert ("; measured" in text) == (tune == "measure")
    verified = tnc.verify(folder)
    assert verified.ok, verified.checks
    assert sum("generated again" in name for name, _ in verified.checks) == len(files)
    assert not any("otherwise" in name for name, _ in verified.checks)


def test_nothing_is_written_unasked(artifact: Path, tmp_path: Path) -> None:
    assert not (artifact / "kernels").exists()
    assert not (saved(tmp_path / "off", tune="off") / "kernels").exists()


def test_training_has_a_backward(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", training=True, rows=(4,))
    assert all("def backward(dy, x, " in file.read_text() for file in sources(folder))
    assert tnc.verify(folder).ok


def test_training_may_keep_values(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", training=True, keep=4.0, rows=(64,))
    texts = [file.read_text() for file in sources(folder)]
    assert any("# keeps      t0" in text and "return y, t0" in text for text in texts), texts
    assert all("def backward(dy, x, t0, " in text for text in texts if "# keeps" in text)
    assert tnc.verify(folder).ok
    with pytest.raises(ValueError, match="only training keeps values"):
        Kernels(keep=0.5)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Kernels(training=True, keep=-1.0)


def test_an_edited_source_is_an_error_with_its_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    file = sources(folder)[0]
    lines = file.read_text().splitlines()
    place = max(k for k, line in enumerate(lines) if line.strip())
    before, lines[place] = lines[place], "    return 2 * y"
    file.write_text("\n".join(lines) + "\n")
    name = f"kernels/{file.name}"
    checks = dict(tnc.verify(folder).checks)
    assert checks[name] == "changed since it was saved"
    resigned(folder, name)
    checks = dict(tnc.verify(folder).checks)
    assert checks[name] == "ok"
    told = checks[f"{name} generated again"]
    assert told == f"line {place + 1} is '    return 2 * y', its program generates '{before}'"
    assert not tnc.verify(folder).ok


def test_an_edited_index_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    index = folder / module.INDEX
    data = json.loads(index.read_text())
    steps = data["kernels"][0]["choice"]["operands"]
    steps[0][2] = steps[0][2][::-1]
    index.write_text(json.dumps(data))
    resigned(folder, module.INDEX)
    found = [result for _, result in tnc.verify(folder).checks if result != "ok"]
    assert found == ["its program does not compute the equation of its layers"]
    data["kernels"][0]["network"] = "B[o r] A[r i] : i -> o | i=3 o=3 r=1"
    index.write_text(json.dumps(data))
    resigned(folder, module.INDEX)
    assert any("no layer of the artifact" in result for _, result in tnc.verify(folder).checks)
    index.write_text("{")
    resigned(folder, module.INDEX)
    assert any("cannot be read" in result for _, result in tnc.verify(folder).checks)


def test_another_machine_may_choose_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "a")
    monkeypatch.setattr(outcomes, "choose", lambda task: choose(task)[::-1])
    verified = tnc.verify(folder)
    assert verified.ok
    told = [name for name, _ in verified.checks if "otherwise on this machine" in name]
    assert len(told) == 1 and "no error" in told[0]


def test_another_version_may_write_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "a")
    other = "def forward(x):\n    return x"
    monkeypatch.setattr(Kernel, "source", lambda self, **kwargs: other)
    assert not tnc.verify(folder).ok
    monkeypatch.setattr(tnc, "__version__", "9.9")
    assert tnc.verify(folder).ok


def test_sources_are_never_run(tmp_path: Path) -> None:
    """An artifact whose sources would end the process loads, and computes what it did."""
    folder, made = saved(tmp_path / "a"), halved("prime")
    for file in sources(folder):
        file.write_text("raise SystemExit('run from the artifact')\n")
    loaded = tnc.load(folder)
    own, other = outputs_of(loaded, made.probe), outputs_of(made.model, made.probe)
    assert all(abs(a - b).max() < 1e-5 for a, b in zip(own, other))


def test_specs_say_it() -> None:
    made = spec(kernels={"tune": "measure", "rows": 16})
    assert made.kernels == Kernels(tune="measure", rows=(16,))
    assert Spec(**made.to_data()) == made and spec().kernels is None
    assert "kernels" not in spec().to_data()
    with pytest.raises(SpecProblems, match="rows"):
        spec(kernels={"rows": []})
    with pytest.raises(SpecProblems, match="tune"):
        spec(kernels={"tune": "guess"})


def test_inspect_shows_kernels(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(artifact), "--kernels", "--rows", "1,16"]) == 0
    told = capsys.readouterr().out
    for text in ("for inference, chosen by predicted time", "B[o r] A[r i] : i -> o", "1 row: ",
                 "9 to 16 rows: predicted", "a dense layer", "why not otherwise",
                 "def forward(x, ", "mkl"):  # fmt: skip
        assert text in told, told
    assert "def backward" not in told and "measured" not in told


def test_inspect_kernels_as_json(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(artifact), "--kernels", "--rows", "4", "--train", "--json"]
    assert main([*arguments, "--tune", "measure", "--layer", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["training"], found["tune"]) == ("kernels", True, "measure")
    (layer,) = found["layers"]
    (kernel,) = layer["kernels"]
    assert layer["paths"] == ["0"] and kernel["rows"] == [3, 4]
    assert kernel["measured"] > 0 < kernel["predicted"] and "def backward" in kernel["source"]
    assert kernel["contenders"] and all(other["differs"] for other in kernel["contenders"])


@pytest.mark.parametrize(("arguments", "told", "code"), [
    (["--kernels", "--layer", "nowhere"], "no structured layer 'nowhere'", 2),
    (["--kernels", "--rows", "1,x"], "no list of positive whole numbers", 2),
    (["--kernels", "--rows", "0"], "no list of positive whole numbers", 2),
    (["--train"], "--kernels", 2),
])  # fmt: skip
def test_inspect_refuses(
    arguments: list[str], told: str, code: int, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(artifact), *arguments]) == code
    assert told in capsys.readouterr().err


def test_inspect_kernels_of_no_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "minilm", "--kernels"]) == 2
    assert "is no artifact" in capsys.readouterr().err
