"""A streamed compilation is the ordinary one, to the bit; killed and resumed, to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
from tests.unit.stream.conftest import AUTO, STEP, halving
from tests.zoo import case
from tnc.cli import main
from tnc.decide.plan import Plan
from tnc.decide.spec import read_spec
from tnc.errors import ArtifactError, PlanError, SourceError
from tnc.rewrite.contract import outputs_of
from tnc.stream import steps
from tnc.stream.running import partial_folder, plan, run

Saved = Callable[[str], tuple[nn.Module, Path]]
ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("name", sorted(AUTO))
def test_it_is_the_ordinary_compilation(name: str, saved: Saved, tmp_path: Path) -> None:
    model, folder = saved(name)
    resolved = halving(name, folder, shares=name in ("bert", "llama"))
    report = run(resolved, tmp_path / "out", step_bytes=STEP)
    example = case(name).inputs()
    batch = resolved.spec.calibration.batches(None)[0]
    plain = tnc.compile(model, resolved.spec, example=batch, locations=resolved.locations)
    assert report.plan.digest == plain.plan.digest
    assert report.plan.entries and any(entry.structure for entry in report.plan.entries)
    loaded = tnc.load(tmp_path / "out", check=True)
    own, other = outputs_of(loaded, example), outputs_of(plain.model, example)
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert not torch.equal(own[0], outputs_of(model, example)[0])
    assert tnc.verify(tmp_path / "out").ok
    assert len(list((tmp_path / "out").glob("tnc-*.safetensors"))) > 2
    assert not partial_folder(tmp_path / "out").exists()


def test_a_plan_is_carried_out_as_it_was_read(saved: Saved, tmp_path: Path) -> None:
    resolved = halving("bert", saved("bert")[1])
    made = plan(resolved)
    made.save(tmp_path / "plan.json")
    given = run(resolved, tmp_path / "a", Plan.read(tmp_path / "plan.json"), step_bytes=STEP)
    assert given.plan.digest == made.digest == run(resolved, tmp_path / "b").plan.digest
    own, other = (contents(tmp_path / name) for name in "ab")
    assert own.keys() != other.keys()  # another step size, other files
    assert "tnc.json" in own and "tnc.json" in other


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_ends_with_the_same_bytes(
    stop: int, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = halving("llama", saved("llama")[1])
    run(resolved, tmp_path / "whole", step_bytes=STEP)
    made: list[str] = []
    carry_out = steps.carry_out

    def counted(step, *rest):  # type: ignore[no-untyped-def]
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(step.file)
        return carry_out(step, *rest)

    monkeypatch.setattr("tnc.stream.running.carry_out", counted)
    with pytest.raises(KeyboardInterrupt):
        run(resolved, tmp_path / "cut", step_bytes=STEP)
    assert not (tmp_path / "cut").exists() and len(made) == stop
    stop = -1
    before = list(made)
    run(resolved, tmp_path / "cut", step_bytes=STEP)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(made) == len(set(made)) and made[: len(before)] == before


def test_a_file_that_changed_is_made_again(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = halving("bert", saved("bert")[1])
    run(resolved, tmp_path / "whole", step_bytes=STEP)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tnc.stream.running._finish", cut)
        run(resolved, tmp_path / "cut", step_bytes=STEP)
    shard = sorted(partial_folder(tmp_path / "cut").glob("tnc-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with (partial_folder(tmp_path / "cut") / ".journal.jsonl").open("ab") as journal:
        journal.write(b'{"file": "tnc-0')  # a line that a kill cut off
    run(resolved, tmp_path / "cut", step_bytes=STEP)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_leaves_work_that_the_next_one_takes_up(
    saved: Saved, tmp_path: Path
) -> None:
    resolved = halving("gpt2", saved("gpt2")[1])
    (tmp_path / "s.yaml").write_text(resolved.text)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tnc.stream import running\n"
        "from tnc.decide.spec import read_spec\nmake = running.carry_out\n"
        "running.carry_out = lambda *a: (time.sleep(0.3), make(*a))[1]\n"
        "running.run(read_spec(sys.argv[1]), Path(sys.argv[2]), step_bytes=4096)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "s.yaml"), str(tmp_path / "cut")]
    process = subprocess.Popen(words, cwd=ROOT)
    partial = partial_folder(tmp_path / "cut")
    deadline = time.monotonic() + 60
    while len(list(partial.glob("tnc-*"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(partial.glob("tnc-*"))) >= 2 and not (tmp_path / "cut").exists()
    for name in ("cut", "whole"):
        run(read_spec(tmp_path / "s.yaml"), tmp_path / name, step_bytes=STEP)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_unfinished_work_of_another_spec_is_not_taken_up(saved: Saved, tmp_path: Path) -> None:
    _, folder = saved("bert")
    partial_folder(tmp_path / "out").mkdir()
    journal = {"checkpoint": "x", "spec": "y"}
    (partial_folder(tmp_path / "out") / ".journal.jsonl").write_text(json.dumps(journal) + "\n")
    with pytest.raises(ArtifactError, match=r"made with another checkpoint and spec"):
        run(halving("bert", folder), tmp_path / "out")


def test_only_one_process_works_on_an_artifact(saved: Saved, tmp_path: Path) -> None:
    resolved = halving("bert", saved("bert")[1])

    def again(stage: str, done: int, total: int) -> None:
        if stage == "fit and write":
            with pytest.raises(ArtifactError, match="another process"):
                run(resolved, tmp_path / "out")

    run(resolved, tmp_path / "out", progress=again)
    with pytest.raises(ArtifactError, match="already holds an artifact"):
        run(resolved, tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"quality": {"max_error": 0.1}}, "no quality gate"),
        ({"export": ["dense"]}, "no exports"),
        ({"passes": ["remove-dead", "factorize"]}, "cannot run pass 'remove-dead'"),
        ({"metric": "both"}, "cannot fit in metric 'both': no gradients"),
    ],
)
def test_what_streaming_cannot_do_is_refused(
    more: dict, message: str, saved: Saved, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=message):
        run(halving("bert", saved("bert")[1], **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_checkpoints_are_named(saved: Saved, tmp_path: Path) -> None:
    _, folder = saved("bert")
    resolved = halving("bert", folder)
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(SourceError, match="it was cut off or changed"):
        run(resolved, tmp_path / "out")
    shard.write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be read"):
        run(resolved, tmp_path / "out")
    shard.unlink()
    with pytest.raises(SourceError, match="it is missing"):
        run(resolved, tmp_path / "out")
    shard.write_bytes(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(SourceError, match="the index cannot be read"):
        run(resolved, tmp_path / "out")


def test_a_checkpoint_of_another_class_is_refused(saved: Saved, tmp_path: Path) -> None:
    _, folder = saved("bert")
    model = {"kind": "hf", "path": str(folder), "auto": "AutoModelForMaskedLM"}
    with pytest.raises(SourceError, match=r"has no 'cls\.predictions"):
        run(halving("bert", folder, model=model), tmp_path / "out")


def test_models_that_make_their_own_weights_are_refused() -> None:
    model = {"kind": "callable", "function": "tests.unit.artifact.models:prime"}
    with pytest.raises(SourceError, match="cannot be streamed"):
        plan(halving("bert", Path("x"), model=model))


def test_the_command_line_streams(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(halving("bert", saved("bert")[1]).text)
    words = [str(tmp_path / "s.yaml"), "--stream"]
    assert main(["plan", *words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["digest"]
    assert main(["compile", *words, "--out", str(tmp_path / "out")]) == 0
    assert "streamed: peak resident" in capsys.readouterr().err
    assert Plan.read(tmp_path / "out" / "plan.json").digest == planned


def test_large_checkpoints_are_streamed_unasked(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "s.yaml").write_text(halving("bert", saved("bert")[1]).text)
    monkeypatch.setattr("tnc.stream.memory.available", lambda: 50_000)
    assert main(["plan", str(tmp_path / "s.yaml")]) == 0
    assert "streaming: the checkpoint has" in capsys.readouterr().err
