"""Kernels chosen ahead of time: what is told is what runs, and what cannot be chosen says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tnc.errors import KernelError
from tnc.kernels.choose import Task, choose
from tnc.kernels.in_words import differences, libraries
from tnc.kernels.outcome import outcome
from tnc.net import parse_network
from tnc.nn.generated import kernels_of, plain_kernels
from tnc.nn.given import Given
from tnc.nn.kinds import kinds_of

TRAIN = (
    "G1[o1 i1 r] G2[r o2 i2 s] G3[s o3 i3] : i1 i2 i3 -> o1 o2 o3 | "
    "i1=4 i2=6 i3=8 o1=5 o2=7 o3=6 r=6 s=5"
)
RULES = (
    {"match": ["1.*", "3.*"], "structure": "low-rank", "keep": 0.3},
    {"match": "5.*", "structure": "tensor-train", "keep": 0.2},
    {"match": "7.*", "structure": "low-rank + sparse", "keep": 0.5},
    {"match": "0.*", "structure": "low-rank", "keep": 0.5},
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNC_CACHE", str(tmp_path / "cache"))


def model() -> nn.Module:
    def linear(n: int, k: int) -> list[nn.Module]:
        return [nn.Linear(k, n), nn.ReLU()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(40, 48), *linear(48, 48), *linear(48, 48),
                            *linear(96, 48), *linear(24, 96)).eval()  # fmt: skip
    return tnc.compile(net, spec(*RULES), example=torch.zeros(1, 4, dtype=torch.long)).model


def ready(model: nn.Module, path: str) -> dict[tuple[int, bool, torch.dtype], Any]:
    (applied,) = kernels_of(model.get_submodule(path))
    return applied._ready


def test_kinds_and_reasons() -> None:
    found = {kind.paths: kind for kind in kinds_of(model())}
    assert set(found) == {("0",), ("1", "3"), ("5",), ("7",)}
    assert not any(found[paths].reason for paths in (("0",), ("1", "3"), ("5",)))
    assert "sparse" in found["7",].reason and not found["7",].outcomes(Given())


def test_other_dtypes_say_so() -> None:
    other = model().to(torch.complex64)
    (low_rank,) = (kind for kind in kinds_of(other) if kind.paths == ("1", "3"))
    assert "complex64" in low_rank.reason and "float32" in low_rank.reason


@pytest.mark.parametrize("how", ["model", "measure"])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_told_is_what_runs(how: str, training: bool) -> None:
    made = model().train(training)
    report = tnc.tune(made, rows=(1, 6), how=how, training=training)
    assert [kind.paths for kind, _ in report.layers] == [("0",), ("1", "3"), ("5",)]
    assert [kind.paths for kind in report.plain] == [("7",)] and report.seconds > 0
    for kind, outcomes in report.layers:
        assert [each.task.rows for each in outcomes] == [1, 8]
        for path in kind.paths:
            held = ready(made, path)
            assert len(held) == 2
            chosen = {each.task.rows: each.choice for each in outcomes}
            for (bits, *_), one in held.items():
                choice = one.choice if kind.paths == ("0",) else one.kernel.choice
                assert choice == chosen[1 << bits]
        assert all((each.choice.measured > 0) == (how == "measure") for each in outcomes)
    told = str(report)
    for text in ("1 and 1 more", "5 to 8 rows", "predicted", "sparse", "chosen in"):
        assert text in told, told
    assert ("measured" in told) == (how == "measure")


def test_outputs_stay_and_no_kernel_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = model(), torch.arange(6)[None]
    with plain_kernels(), torch.no_grad():
        wanted = made(x)
    tnc.tune(made, rows=(6,), how="model")

    def refuse(task: Task) -> None:
        raise AssertionError("chosen at the call")

    monkeypatch.setattr("tnc.kernels.applied.choices", refuse)
    monkeypatch.setattr("tnc.nn.generated_lookup.choices", refuse)
    with torch.no_grad():
        torch.testing.assert_close(made(x), wanted)


@pytest.mark.parametrize("rows", [(), (0,), (1.5,), (True,), ("8",)])
def test_rows_are_checked(rows: tuple[object, ...]) -> None:
    with pytest.raises(KernelError, match="rows"):
        tnc.tune(model(), rows=rows)


def test_ways_of_choosing_are_checked() -> None:
    with pytest.raises(KernelError, match="by model or measure, not 'guess'"):
        tnc.tune(model(), how="guess")


def test_training_keeps_what_is_allowed() -> None:
    made = model()
    told = tnc.tune(made, rows=(64,), how="model", training=True, keep=4.0)
    linear = {"1", "3", "5"}
    best = [e.choice for kind, own in told.layers if linear & {*kind.paths} for e in own]
    assert any(choice.way.back.kept for choice in best) and "; keeps t0" in str(told)
    (kept,) = ready(made, "1").values()
    assert kept.kernel.choice in best
    nothing = tnc.tune(made, rows=(64,), how="model", training=True)
    assert "keeps" not in str(nothing)
    with pytest.raises(KernelError, match="nothing is kept without gradients"):
        tnc.tune(made, keep=0.5)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(KernelError, match="is no bound on what is kept"):
            tnc.tune(made, training=True, keep=wrong)


def test_a_model_without_structured_layers_is_no_error() -> None:
    report = tnc.tune(nn.Linear(3, 3))
    assert not report.layers and not report.plain


@pytest.mark.parametrize("training", [False, True])
def test_differences_are_told(training: bool) -> None:
    """Every contender says in what it differs, and the products add up to the FLOPs."""
    task = Task(parse_network(TRAIN), 64, "float32", 1, training)
    choices = choose(task)
    found = outcome(task, choices)
    assert (found.fewest, found.dense > 0) == (33, True)
    assert len(found.contenders) == len(choices) - 1 > 2
    assert all(contender.differs for contender in found.contenders)
    products = [line for line in found.lines if line.flops]
    assert tuple(line.backend for line in products) == libraries(choices[0])
    for line in products:
        batch, m, n, k = line.shape
        assert line.flops == 2 * batch * m * n * k
    assert ("def backward" in found.source(True)) == training
    assert differences(choices[0], choices[0]) == ("nothing but chance",)
