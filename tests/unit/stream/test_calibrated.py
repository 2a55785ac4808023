"""A calibrated streamed compilation has the ordinary plan and the ordinary outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

import tnc
from tests.unit.stream.conftest import AUTO, halving, seq2seq
from tests.unit.stream.test_weight_only import contents
from tests.zoo import case
from tnc.errors import PlanError
from tnc.rewrite.contract import outputs_of
from tnc.stream.blocks import Blocks
from tnc.stream.flow import OPEN, Flow, _Run
from tnc.stream.journal import Journal
from tnc.stream.running import partial_folder, plan, run
from tnc.stream.values import Shelf

TEXT = {"t5": "AutoModelForSeq2SeqLM"}
Saved = Callable[[str], tuple[nn.Module, Path]]


def tnc_files(folder: Path) -> dict[str, bytes]:
    return {n: data for n, data in contents(folder).items() if n.endswith(".safetensors")}


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


def test_a_plan_for_another_metric_gives_other_weights(saved: Saved, tmp_path: Path) -> None:
    folder, example = saved("bert")[1], case("bert").inputs()
    found = []
    for number, refit in enumerate((0.0, 0.3)):
        passes = [f"factorize{{refit={refit}}}", "keep-ties"]
        run(halving("bert", folder, metric="inputs", passes=passes), tmp_path / str(number))
        found.append(outputs_of(tnc.load(tmp_path / str(number)), example)[0])
    assert not torch.allclose(*found)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_every_weight_with_padding_and_ties(name: str, saved: Saved, tmp_path: Path) -> None:
    """Embeddings, tied heads, and code between the blocks of an encoder and a decoder."""
    if name == "t5":
        model, folder = seq2seq(), tmp_path / "t5"
        model.save_pretrained(folder)
    else:
        model, folder = saved(name)
    data = {"kind": "callable", "function": "tests.unit.stream.conftest:padded"}
    resolved = halving(
        "llama",
        folder,
        model={"kind": "hf", "path": str(folder), "auto": TEXT.get(name, AUTO["llama"])},
        calibration=data | {"kwargs": {"case_name": name}},
        metric="inputs",
        rules=[{"match": "*", "structure": "low-rank"}],
    )
    report, plain = run(resolved, tmp_path / "out"), ordinary(model, resolved)
    assert report.plan.digest == plain.plan.digest
    assert any("layer" not in e.site and ".h." not in e.site for e in report.plan.entries)
    example = case(name).inputs(9)
    own, other = outputs_of(tnc.load(tmp_path / "out"), example), outputs_of(plain.model, example)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, other, strict=True))


def test_a_given_plan_is_carried_out(saved: Saved, tmp_path: Path) -> None:
    model, folder = saved("bert")
    resolved = halving("bert", folder, metric="inputs")
    given = ordinary(model, resolved).plan
    assert run(resolved, tmp_path / "a", given).plan.digest == given.digest
    run(resolved, tmp_path / "b")
    assert tnc_files(tmp_path / "a") == tnc_files(tmp_path / "b")


def test_models_without_blocks_say_so(saved: Saved, tmp_path: Path) -> None:
    model, folder = case("t5").build(), tmp_path / "t5"
    model.save_pretrained(folder)
    data = {"kind": "callable", "function": "tests.unit.stream.conftest:padded"}
    more = {
        "model": {"kind": "hf", "path": str(folder), "auto": TEXT["t5"]},
        "calibration": data | {"kwargs": {"case_name": "t5"}},
    }
    made = plan(halving("llama", folder, metric="auto", **more))
    assert any("plain norm: the model cannot be measured (no blocks" in n for n in made.notes)
    assert {entry.metric for entry in made.entries} == {"none"}
    with pytest.raises(PlanError, match="no blocks of one class"):
        plan(halving("llama", folder, metric="inputs", **more))


def test_what_code_between_blocks_hides_is_found() -> None:
    """Results that are used by code around the blocks are not mistaken for what they became."""
    x = torch.zeros(2)
    run = _Run(Flow("was", Blocks((), {}), [], cast("Shelf", None)), 0)
    run._known[id(x)] = ("3/0", x._version, x)
    assert run._name(x) == "3/0"
    x.add_(1)
    assert run._name(x) == "given0/0"
    assert run._name(torch.full((2,), torch.nan)) == OPEN


def test_passes_that_need_the_whole_model_are_left_out(saved: Saved) -> None:
    made = plan(halving("vit", saved("vit")[1], metric="auto"))
    assert "match-outputs" not in made.passes and "factorize" in made.passes
    assert any("match-outputs is left out" in note for note in made.notes)
    made = plan(halving("bert", saved("bert")[1], metric="auto"))
    assert "match-outputs" in made.passes  # it has nothing to do there


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
