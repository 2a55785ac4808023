"""Signals, kills and full disks: the old artifact stays, the same command works afterwards."""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.messages import wrong
from tests.messages.test_bad_input import HALF, RANDOM, STORED, contents, text
from tnc.cli import main

SEARCHED = text("structure: low-rank", HALF + RANDOM + "distill: {steps: 3, layerwise: 0.0}\n")
STAGES = {
    "measure": ("tnc.capture.measure:_measured", "interrupted; nothing was written"),
    "fit": ("tnc.rewrite.fitting:fit_structure", "interrupted; nothing was written"),
    "distill": ("tnc.distilling.distil:parameter_groups", "interrupted; nothing was written"),
    "a step": ("tnc.distilling.distil:rate_factor", "interrupted after 1 steps of distillation"),
    "save": ("tnc.artifact.saving:_card", "interrupted; what is done was kept"),
    "stream": ("tnc.stream.running:checksum", "interrupted; what is done was kept"),
}
KEPT = {"a step": {"out.distill"}, "save": {"out.distill"}, "stream": {".out.partial"}}
KILLED = """
import os, signal, sys, tnc.artifact.saving as saving, tnc.stream.running as running
def kill(*given, **named):
    os.kill(os.getpid(), signal.SIGKILL)
saving._card = running.checksum = kill
from tnc.cli import main
main(sys.argv[1:])
"""


def written(folder: Path, streamed: bool) -> list[str]:
    """A spec, the artifact of an earlier run in `out`, and the command that replaces it."""
    save_file(wrong.small().state_dict(), folder / "w.safetensors")
    spec = STORED.replace("{folder}", str(folder)) if streamed else SEARCHED
    (folder / "s.yaml").write_text(spec)
    words = ["compile", str(folder / "s.yaml"), "--out", str(folder / "out")]
    words += ["--stream"] if streamed else []
    assert main(words) == 0
    return [*words, "--force"]


@pytest.fixture(autouse=True)
def ctrl_c():
    """Let SIGINT interrupt, as a terminal does: background jobs are started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_a_stage_and_the_next_run_works(
    stage: str, kind: signal.Signals, tmp_path: Path, monkeypatch, capsys
) -> None:
    place, told = STAGES[stage]
    words = written(tmp_path, stage == "stream")
    before = contents(tmp_path / "out")
    module, _, name = place.partition(":")
    function = getattr(importlib.import_module(module), name)

    def struck(*given: object, **named: object) -> object:
        os.kill(os.getpid(), kind)
        return function(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(module), name, struck)
        assert main(words) == 5
    assert told in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    left = {path.name for path in tmp_path.iterdir()} - {"s.yaml", "w.safetensors", "out"}
    assert left == KEPT.get(stage, set())
    assert main(words) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert not (tmp_path / ".out.partial").exists() and not (tmp_path / "out.distill").exists()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_kill_leaves_the_old_artifact_and_the_next_run_works(
    streamed: bool, tmp_path: Path
) -> None:
    words = written(tmp_path, streamed)
    before = contents(tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert contents(tmp_path / "out") == before
    assert main(words) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"s.yaml", "w.safetensors", "out", "out.distill"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_full_disk_is_told_and_the_old_artifact_stays(
    streamed: bool, tmp_path: Path, capsys
) -> None:
    words = written(tmp_path, streamed)
    before = contents(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert code == 2, told
    assert "cannot write" in told and "  try: choose another place, with room" in told
    assert contents(tmp_path / "out") == before
    assert main(words) == 0
