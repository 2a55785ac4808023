"""Artifacts that are damaged, edited, half written or in the way are refused in words."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tnc
from tests.compiled import halved
from tests.unit.artifact.conftest import SOURCE
from tests.zoo import case
from tnc.artifact.manifest import NAME, PROBE
from tnc.artifact.probing import same_outputs
from tnc.cli import main
from tnc.errors import ArtifactError
from tnc.files import replaced_folder
from tnc.net import digest
from tnc.rewrite.contract import outputs_of

ROOT = Path(__file__).parents[3]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("tnc-*.safetensors"))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edit(folder: Path, change: Callable[[dict], None], sign: bool = False) -> None:
    data = json.loads((folder / NAME).read_text())
    change(data)
    if sign:
        data.pop("digest")
        data["digest"] = digest(data)
    (folder / NAME).write_text(json.dumps(data))


def test_an_artifact_is_split_into_small_files_and_whole(artifact: Path) -> None:
    assert len(shards(artifact)) > 3
    verified = tnc.verify(artifact)
    assert verified.ok and dict(verified.checks)["outputs on the probe"] == "ok"
    assert {path.name for path in artifact.iterdir()} == {
        *(name for name, _ in verified.checks if "." in name),
        NAME,
    }


@pytest.mark.parametrize("which", ["shard", PROBE, "plan.json", "README.md"])
def test_a_flipped_byte_is_found_in_every_file(artifact: Path, which: str) -> None:
    file = shards(artifact)[1] if which == "shard" else artifact / which
    flip_last_byte(file)
    verified = tnc.verify(artifact)
    failed = [check for check in verified.checks if check[1] != "ok"]
    assert failed == [(file.name, "changed since it was saved")]
    with pytest.raises(ArtifactError, match=f"{file.name}: changed since it was saved"):
        verified.require(artifact)
    assert main(["verify", str(artifact)]) == 2


@pytest.mark.parametrize("which", ["shard", PROBE, "plan.json"])
def test_a_missing_file_is_named(artifact: Path, which: str) -> None:
    file = shards(artifact)[1] if which == "shard" else artifact / which
    file.unlink()
    assert (file.name, "missing") in tnc.verify(artifact).checks
    if which == "shard":
        with pytest.raises(ArtifactError, match=f"{file.name} is missing"):
            tnc.load(artifact)


def test_a_truncated_file_is_named(artifact: Path) -> None:
    file = shards(artifact)[0]
    file.write_bytes(file.read_bytes()[:-5])
    assert not tnc.verify(artifact).ok
    with pytest.raises(ArtifactError, match=f"{file.name} cannot be read"):
        tnc.load(artifact)


def test_an_edited_manifest_is_refused(artifact: Path) -> None:
    edit(artifact, lambda data: data["frozen"].append("0.bias"))
    with pytest.raises(ArtifactError, match="does not match its digest: it was edited"):
        tnc.load(artifact)
    with pytest.raises(ArtifactError, match="does not match its digest"):
        tnc.verify(artifact)


def test_outputs_that_changed_are_found_though_every_file_is_whole(artifact: Path) -> None:
    def swap(data: dict) -> None:
        data["modules"][0]["view"]["rows"] = 1
        data["source"]["function"] = "tests.unit.artifact.models:wider"

    edit(artifact, swap, sign=True)
    verified = tnc.verify(artifact)
    told = dict(verified.checks)["outputs on the probe"]
    assert not verified.ok and told.startswith("output 0 differs by")


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "cannot be read"), ("", "cannot")],
)
def test_a_manifest_that_is_none_is_refused(artifact: Path, text: str, told: str) -> None:
    (artifact / NAME).write_text(text)
    with pytest.raises(ArtifactError, match=told) as caught:
        tnc.load(artifact)
    assert NAME in caught.value.where


def test_another_format_names_the_version_that_wrote_it(artifact: Path) -> None:
    edit(artifact, lambda data: data.update(format=99), sign=True)
    with pytest.raises(ArtifactError, match="format 99, this tnc reads 1") as caught:
        tnc.load(artifact)
    assert tnc.__version__ in caught.value.hint


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no artifact: it has no tnc"):
        tnc.load(tmp_path)


def test_saving_over_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        for force in (False, True):
            with pytest.raises(ArtifactError, match="is no artifact, so it is not replaced"):
                tnc.save(halved("prime"), target, force=force)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_saving_over_an_artifact_needs_force(artifact: Path) -> None:
    before = {p.name: p.read_bytes() for p in artifact.iterdir()}
    with pytest.raises(ArtifactError, match="already holds an artifact"):
        tnc.save(halved("prime"), artifact)
    assert before == {p.name: p.read_bytes() for p in artifact.iterdir()}
    tnc.save(halved("prime"), artifact, force=True, source=SOURCE)
    assert len(shards(artifact)) == 1 and tnc.verify(artifact).ok
    assert [p.name for p in artifact.parent.iterdir()] == [artifact.name]


def test_a_save_that_fails_leaves_the_old_artifact(artifact: Path, monkeypatch) -> None:
    before = {p.name: p.read_bytes() for p in artifact.iterdir()}
    monkeypatch.setattr("tnc.artifact.saving.describe_modules", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tnc.save(halved("prime"), artifact, force=True)
    assert before == {p.name: p.read_bytes() for p in artifact.iterdir()}
    assert [p.name for p in artifact.parent.iterdir()] == [artifact.name]


def test_a_place_that_cannot_be_written_is_an_artifact_error(
    artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for action in (
        lambda: tnc.save(halved("prime"), tmp_path / "file" / "a"),
        lambda: tnc.export(artifact, "dense", tmp_path / "file" / "m.safetensors"),
        lambda: tnc.export(artifact, "dense", artifact),
    ):
        with pytest.raises(ArtifactError, match="cannot write"):
            action()
    assert tnc.verify(artifact).ok


LOOP = """
import sys, time
from pathlib import Path
import tnc.files
from tnc.files import replaced_folder
def slowly(do):
    def done(*a, **k):
        time.sleep(0.004)
        result = do(*a, **k)
        time.sleep(0.004)
        return result
    return done
tnc.files.os.rename = slowly(tnc.files.os.rename)
tnc.files.shutil.rmtree = slowly(tnc.files.shutil.rmtree)
source, target = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while True:
    with replaced_folder(target) as fresh:
        for file in sorted(source.iterdir()):
            (fresh / file.name).write_bytes(file.read_bytes())
            time.sleep(0.001)
"""


def test_a_kill_in_the_middle_leaves_an_artifact_that_loads(artifact: Path, tmp_path: Path) -> None:
    pristine, probe = shutil.copytree(artifact, tmp_path / "pristine"), case("prime").inputs()
    wanted = outputs_of(halved("prime").model, probe)[0]
    delays = torch.rand(10, generator=torch.Generator().manual_seed(0)) * 0.12
    asides = 0
    for delay in delays.tolist():
        writer = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(pristine), str(artifact)], cwd=ROOT,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        asides += len(list(tmp_path.glob(f".{artifact.name}.*")))
        assert torch.equal(outputs_of(tnc.load(artifact), probe)[0], wanted)
    assert asides, "no kill came in the middle"
    tnc.save(halved("prime"), artifact, source=SOURCE, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {artifact.name, "pristine"}


@pytest.mark.parametrize("left", ["aside", "both"])
def test_whatever_a_kill_left_the_next_save_works(artifact: Path, left: str) -> None:
    old = artifact.with_name(f".{artifact.name}.old")
    if left == "aside":
        os.rename(artifact, old)
        assert tnc.verify(artifact).ok, "reading brings the old one back"
    else:
        shutil.copytree(artifact, old)
    tnc.save(halved("prime"), artifact, source=SOURCE, force=True)
    assert tnc.verify(artifact).ok and not old.exists()


def test_a_reader_that_brings_the_old_folder_back_does_not_stop_the_writer(
    tmp_path: Path, monkeypatch
) -> None:
    target, rename, calls = tmp_path / "t", os.rename, []
    target.mkdir()
    (target / "old").touch()

    def racing(source: Path, to: Path) -> None:
        calls.append(to)
        if len(calls) == 2:
            rename(tmp_path / ".t.old", target)
        rename(source, to)

    monkeypatch.setattr("tnc.files.os.rename", racing)
    with replaced_folder(target) as fresh:
        (fresh / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"] and len(calls) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_damaged_shard_is_found_by_a_load_that_checks_and_by_every_export(
    artifact: Path, tmp_path: Path
) -> None:
    file = shards(artifact)[1]
    tnc.load(artifact, check=True)
    flip_last_byte(file)
    tnc.load(artifact)
    for action in (
        lambda: tnc.load(artifact, check=True),
        lambda: tnc.export(artifact, "dense", tmp_path / "m.safetensors"),
    ):
        with pytest.raises(ArtifactError, match=f"{file.name}: changed since it was saved"):
            action()
    assert [path.name for path in tmp_path.iterdir()] == [artifact.name]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_outputs_that_are_not_finite_are_no_match(value: str) -> None:
    wanted = torch.tensor([1.0, 2.0, 3.0])
    spoilt = wanted.clone()
    spoilt[1] = float(value)
    for found, stored in ((spoilt, wanted), (wanted, spoilt)):
        told = same_outputs((found,), {"outputs.0": stored}, 1e-4)
        assert told == "output 0 is not finite at other places than the stored one"
    assert not same_outputs((spoilt,), {"outputs.0": spoilt.clone()}, 1e-4)
    assert "differs by" in same_outputs((spoilt + 1,), {"outputs.0": spoilt}, 1e-4)
