"""A calibrated streamed compilation has the ordinary plan and the ordinary outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
from tests.unit.stream.conftest import AUTO, halving
from tests.unit.stream.test_weight_only import contents
from tests.zoo import case
from tnc.rewrite.contract import outputs_of
from tnc.stream.journal import Journal
from tnc.stream.running import partial_folder, plan, run

Saved = Callable[[str], tuple[nn.Module, Path]]


def ordinary(model, resolved, **more):  # type: ignore[no-untyped-def]
    batches = resolved.spec.calibration.batches(None)
    given = {"example": batches[0], "calibration": batches, "locations": resolved.locations}
    return tnc.compile(model, resolved.spec, **given, **more)


@pytest.mark.parametrize("name", sorted(AUTO))
def test_the_plan_is_the_ordinary_one(name: str, saved: Saved) -> None:
    model, folder = saved(name)
    resolved = halving(name, folder, metric="inputs", passes=["factorize", "keep-ties"])
    streamed, whole = plan(resolved), ordinary(model, resolved).plan
    assert any(entry.metric == "inputs" and entry.structure for entry in streamed.entries)
    for own, other in zip(streamed.entries, whole.entries, strict=True):
        assert own.site == other.site and own.structure == other.structure
        assert own.error == pytest.approx(other.error, rel=1e-4)
    assert streamed.digest == whole.digest


@pytest.mark.parametrize("name", sorted(AUTO))
@pytest.mark.parametrize("passes", [["factorize{refit=0.0}"], ["factorize", "share-input-factors"]])
def test_it_is_the_ordinary_compilation(
    name: str, passes: list[str], saved: Saved, tmp_path: Path
) -> None:
    model, folder = saved(name)
    shares = len(passes) > 1 and name in ("bert", "llama")
    steps = ["find-sites", *passes, "keep-ties"]
    resolved = halving(name, folder, metric="inputs", shares=shares, passes=steps)
    report, plain = run(resolved, tmp_path / "out"), ordinary(model, resolved)
    assert report.plan.digest == plain.plan.digest
    loaded, example = tnc.load(tmp_path / "out", check=True), case(name).inputs()
    own, other = outputs_of(loaded, example), outputs_of(plain.model, example)
    assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))
    assert tnc.verify(tmp_path / "out").ok
    assert not (tmp_path / "out" / ".cache").exists()


@pytest.mark.parametrize("stop", range(7))
def test_an_interrupted_run_ends_with_the_same_bytes(
    stop: int, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = halving("gpt2", saved("gpt2")[1], metric="inputs")
    run(resolved, tmp_path / "whole")
    real, count = Journal.add, [0]

    def cut(journal: Journal, line: dict) -> None:
        if count[0] == stop:
            raise KeyboardInterrupt
        count[0] += 1
        real(journal, line)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", cut)
        run(resolved, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    run(resolved, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_damaged_caches_are_made_again(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = halving("bert", saved("bert")[1], metric="inputs")
    run(resolved, tmp_path / "whole")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tnc.stream.blockwise._around", cut)
        run(resolved, tmp_path / "cut")
    values = sorted((partial_folder(tmp_path / "cut") / ".cache").glob("now-*"))
    values[0].write_bytes(values[0].read_bytes()[:-1] + b"\1")
    run(resolved, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
