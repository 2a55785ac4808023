"""Distillation lowers the error, resumes to the bit, and leaves alone what is frozen."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnc
from tnc.decide.spec_parts import Distill
from tnc.distilling import Interrupted
from tnc.errors import ArtifactError, FitError, PlanError, SpecError, TncError


class Answer(nn.Module):
    """A network of blocks with batch norms; `form` is what its forward returns."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        y = self.head(x)
        return {"tensor": y, "tuple": (y, x), "dict": {"logits": y, "hidden": [x]}}[self.form]


BATCHES = list(torch.randn(8, 32, 16, generator=torch.Generator().manual_seed(1)))


def pair(form: str = "tensor") -> tuple[nn.Module, nn.Module]:
    """Return a compressed model and its teacher."""
    torch.manual_seed(0)
    teacher = Answer(form).eval()
    rules = [{"match": "blocks.*", "structure": "low-rank", "keep": 0.6}]
    spec = tnc.Spec(version=1, rules=rules, passes=["find-sites", "factorize"])
    return tnc.compile(teacher, spec, example=BATCHES[0]).model, teacher


def error(model: nn.Module, teacher: nn.Module) -> float:
    def answers(side: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            y = side(torch.cat(BATCHES))
        return y if isinstance(y, torch.Tensor) else y[0] if isinstance(y, tuple) else y["logits"]

    mine, theirs = answers(model), answers(teacher)
    return float((mine - theirs).norm() / theirs.norm())


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_the_error_falls(form: str) -> None:
    small, teacher = pair(form)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    found = tnc.distill(small, teacher, BATCHES, steps=150)
    assert found.steps == 150
    assert error(found.model, teacher) < 0.95 * error(small, teacher)
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())
    assert not found.model.training


def test_it_trains_in_half_precision() -> None:
    small, teacher = pair()
    seen: set[torch.dtype] = set()
    small.head.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    found = tnc.distill(small, teacher, BATCHES, steps=150, precision="bfloat16").model
    assert torch.bfloat16 in seen
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert error(found, teacher) < 0.95 * error(small, teacher)


@pytest.mark.parametrize("blocks, asked", [(0.0, len(BATCHES)), (1.0, 3 * len(BATCHES))])
def test_a_list_of_batches_is_asked_once(blocks: float, asked: int) -> None:
    small, teacher = pair()
    counted: list[None] = []
    teacher.register_forward_hook(lambda *_: counted.append(None))
    steps = 3 * len(BATCHES)
    tnc.distill(small, teacher, BATCHES, steps=steps, layerwise=0.0, blocks=blocks)
    assert len(counted) == asked


def test_what_is_frozen_stays() -> None:
    small, teacher = pair()
    small.head.requires_grad_(False)
    found = tnc.distill(small, teacher, BATCHES, steps=3).model
    assert same(found.head, small.head) and not same(found, small)
    named = tnc.distill(small, teacher, BATCHES, steps=3, freeze="blocks.0.*").model
    assert same(named.blocks[0][0], small.blocks[0][0])
    assert not same(named.blocks[1][0], small.blocks[1][0])
    assert named.blocks[0][0].cores["A"].requires_grad
    small.requires_grad_(False)
    with pytest.raises(PlanError, match="nothing to train"):
        tnc.distill(small, teacher, BATCHES, steps=3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_it_resumes_to_the_bit(
    tmp_path: Path, optimizer: str, kind: signal.Signals
) -> None:
    small, teacher = pair()
    settings = Distill(steps=21, optimizer=optimizer, rate=0.003)
    whole = tnc.distill(small, teacher, BATCHES, settings)

    def stopping(number: int) -> Iterator[torch.Tensor]:
        for place, batch in enumerate(ordered(number)):
            if (number, place) == (1, 3):
                os.kill(os.getpid(), kind)
            yield batch

    def ordered(number: int) -> Iterator[torch.Tensor]:
        draw = torch.Generator().manual_seed(100 + number)
        yield from (BATCHES[k] for k in torch.randperm(8, generator=draw).tolist())

    place = tmp_path / "run"
    with pytest.raises(Interrupted, match="after 12 steps") as caught:
        tnc.distill(small, teacher, stopping, settings, checkpoint=place)
    assert caught.value.exit_code == 5
    resumed = tnc.distill(small, teacher, ordered, settings, checkpoint=place)
    assert resumed.steps == 21 and same(
        resumed.model, tnc.distill(small, teacher, ordered, settings).model
    )
    assert not same(resumed.model, whole.model), "another order of data gives another model"
    again = tnc.distill(small, teacher, ordered, settings, checkpoint=place)
    assert same(again.model, resumed.model)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    small, teacher = pair()
    tnc.distill(small, teacher, BATCHES, steps=2, checkpoint=tmp_path / "run")
    with pytest.raises(ArtifactError, match="another run"):
        tnc.distill(small, teacher, BATCHES, steps=3, checkpoint=tmp_path / "run")
    (tmp_path / "run" / "state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="cannot read the checkpoint"):
        tnc.distill(small, teacher, BATCHES, steps=2, checkpoint=tmp_path / "run")


def test_refusals_in_words() -> None:
    small, teacher = pair()
    with pytest.raises(PlanError, match="no batch"):
        tnc.distill(small, teacher, [], steps=2)
    with pytest.raises(PlanError, match="no batch"):
        tnc.distill(small, teacher, lambda number: [], steps=2)
    with pytest.raises(TncError, match="minutes or steps"):
        tnc.distill(small, teacher, BATCHES)
    with pytest.raises(PlanError, match="matches no module"):
        tnc.distill(small, teacher, BATCHES, steps=2, match=("layer.*",))
    with pytest.raises(FitError, match="the loss is nan"):
        tnc.distill(small, teacher, [BATCHES[0] * float("nan")], steps=2)
    with pytest.raises(SpecError):
        Distill.of(steps=0)


def test_minutes_end_it() -> None:
    small, teacher = pair()
    found = tnc.distill(small, teacher, BATCHES, minutes=0.01)
    assert 0.6 <= found.seconds < 20 and found.steps > 0


def test_a_spec_distills_and_says_so(tmp_path: Path) -> None:
    from tnc.decide.spec import read_spec
    from tnc.recipe import run

    file = tmp_path / "spec.yaml"
    file.write_text(
        "version: 1\n"
        "model: {kind: callable, function: 'tests.messages.models:small'}\n"
        "calibration: {kind: random, shapes: [[16]], samples: 64}\n"
        "distill: {steps: 30}\n"
        "rules: [{match: '*', structure: low-rank, keep: 0.5}]\n",
        encoding="utf-8",
    )
    plain = run(read_spec(file, ["distill=null"]))
    report = run(read_spec(file), tmp_path / "out")
    assert report.figures[0][1] < plain.figures[0][1]
    assert dict(report.seconds)["distill"] >= 0
    assert not (tmp_path / "out.distill").exists() and (tmp_path / "out" / "tnc.json").exists()
