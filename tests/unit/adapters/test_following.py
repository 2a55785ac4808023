"""How hooks meet optimizers: fused scalers, closures, alternation, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.adapters.single import Single, single
from tnc.adapters import adapt_
from tnc.adapters.delta import Delta
from tnc.adapters.following import follow
from tnc.adapters.methods.lora import LoRA
from tnc.adapters.methods.lora_pro import LoRAPro
from tnc.adapters.training_step import TrainingStep
from tnc.errors import BindError

LOG: list[tuple[str, int]] = []
ROUND = ["penalty", "gradients", "proximal", "event"]


def _gradients(self: LoRA, delta: Delta, at: TrainingStep) -> None:
    LOG.append(("gradients", at.number))


def _penalty(self: LoRA, delta: Delta, at: TrainingStep) -> Tensor:
    LOG.append(("penalty", at.number))
    return delta.cores["B"].square().sum() * 0.5


def _proximal(self: LoRA, delta: Delta, at: TrainingStep) -> None:
    LOG.append(("proximal", at.number))


def _event(self: LoRA, delta: Delta, at: TrainingStep) -> str:
    LOG.append(("event", at.number))
    return ""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LoRA write down which of its hooks ran, and at which step."""
    LOG.clear()
    for name, hook in zip(
        ("gradients_", "penalty", "proximal_", "event_"), (_gradients, _penalty, _proximal, _event)
    ):
        monkeypatch.setattr(LoRA, name, hook)


def hooks(steps: int) -> list[tuple[str, int]]:
    return [(what, step) for step in range(1, steps + 1) for what in ROUND]


def twins(method: Any = None, dtype: torch.dtype = torch.float64) -> tuple[Single, Single]:
    chosen = method or LoRA(rank=2)
    return single(chosen, dtype), single(chosen, dtype)


def test_a_fused_optimizer_that_unscales_itself() -> None:
    """Hooks see gradients without the scale, and none of a step that the optimizer skips."""
    plain, scaled = twins(LoRAPro(rank=2), torch.float32)
    one = torch.optim.Adam(plain.adapters.parameters(), lr=0.01)
    other = torch.optim.Adam(scaled.adapters.parameters(), lr=0.01, fused=True)
    assert other._step_supports_amp_scaling
    follow(plain.adapters, one)
    followed = follow(scaled.adapters, other)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for number in range(4):
        bad = number == 1
        y = scaled.adapters.model(scaled.x)
        other.zero_grad()
        scaler.scale((y * scaled.target).sum()).backward()
        if bad:
            next(scaled.adapters.parameters()).grad.fill_(torch.nan)
            before = scaled.weight()
        scaler.step(other)
        scaler.update()
        if bad:
            assert torch.equal(scaled.weight(), before)
        else:
            plain.backward()
            one.step()
    assert followed.steps == 3
    assert torch.allclose(plain.weight(), scaled.weight(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_is_followed_by_the_hooks(by_name: bool) -> None:
    plain, closed = twins()
    one = torch.optim.SGD(plain.adapters.parameters(), lr=0.01)
    other = torch.optim.SGD(closed.adapters.parameters(), lr=0.01)
    follow(plain.adapters, one)
    for _ in range(3):
        plain.backward()
        one.step()
    assert hooks(3) == LOG
    LOG.clear()
    followed = follow(closed.adapters, other)

    def closure() -> float:
        closed.backward()
        return 7.0

    for _ in range(3):
        found = other.step(closure=closure) if by_name else other.step(closure)
        assert found == 7.0
    assert hooks(3) == LOG
    assert followed.steps == 3
    assert torch.equal(plain.weight(), closed.weight())


@pytest.mark.usefixtures("counted")
def test_a_closure_called_often_is_adjusted_each_time_and_one_step() -> None:
    one = single(LoRA(rank=2))
    optimizer = torch.optim.LBFGS(one.adapters.parameters(), lr=0.1, max_iter=3)
    followed = follow(one.adapters, optimizer)
    y = one.x @ one.base.T + 1

    def closure() -> Tensor:
        value = ((one.adapters.model(one.x) - y) ** 2).mean()
        optimizer.zero_grad()
        value.backward()
        return value.detach()

    optimizer.step(closure)
    assert followed.steps == 1
    assert [what for what, _ in LOG].count("gradients") > 1
    assert [what for what, _ in LOG].count("event") == 1


@pytest.mark.usefixtures("counted")
def test_optimizers_that_alternate_have_steps_of_their_own() -> None:
    one = single(LoRA(rank=2))
    parts = [torch.optim.SGD([p], lr=0.01) for p in one.adapters.parameters()]
    followed = follow(one.adapters, *parts)
    for number in (0, 0, 1, 0):  # the second step of the first closes the round before it
        one.backward()
        parts[number].step()
    assert [*hooks(2), ("penalty", 3), ("gradients", 3)] == LOG
    assert followed.steps == 2


@pytest.mark.usefixtures("counted")
def test_nothing_runs_after_closing() -> None:
    one = single(LoRA(rank=2))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.01)
    followed = follow(one.adapters, optimizer)
    followed.close()
    one.backward()
    optimizer.step()
    assert LOG == []


@pytest.mark.usefixtures("counted")
def test_adapters_that_are_not_used_do_nothing() -> None:
    one = single(LoRA(rank=2))
    adapt_(one.adapters.model, "sara{share=0.1}", name="second", example=one.x)
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.01)
    followed = follow(one.adapters, optimizer)
    one.adapters.use("second")
    (one.adapters.model(one.x) * one.target).sum().backward()
    optimizer.step()
    assert LOG == []
    one.adapters.use("default")
    (one.adapters.model(one.x) * one.target).sum().backward()
    optimizer.step()
    assert hooks(1) == LOG
    assert followed.steps == 1


def test_refusals() -> None:
    one = single(LoRA(rank=2))
    with pytest.raises(BindError, match="no optimizer is given"):
        follow(one.adapters)
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(BindError, match="no parameter of the adapters"):
        follow(one.adapters, stranger)
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.1)
    followed = follow(one.adapters, optimizer)
    state = followed.state_dict()
    adapt_(one.adapters.model, "lora{rank=1}", name="second", example=one.x)
    with pytest.raises(BindError, match="'second/weight' is on one side alone"):
        followed.load_state_dict(state)


@pytest.mark.usefixtures("counted")
def test_the_model_is_searched_when_adapters_change_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps cost nothing for modules without adapters; what is switched in between is followed."""
    one = single(LoRA(rank=2))
    optimizer = torch.optim.SGD(one.adapters.parameters(), lr=0.01)
    followed = follow(one.adapters, optimizer)
    searched = []
    search = torch.nn.Module.named_modules

    def counting(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is one.adapters.model:
            searched.append(1)
        return search(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "named_modules", counting)

    def step(count: int = 1) -> int:
        LOG.clear()
        found = 0
        for _ in range(count):
            one.backward()
            searched.clear()
            optimizer.step()
            found += len(searched)
        return found

    assert step(3) == 0 and hooks(3) == LOG
    adapt_(one.adapters.model, LoRA(rank=1), name="second", example=one.x)
    optimizer.add_param_group({"params": list(one.adapters.parameters("second"))})
    assert step() > 0 and hooks(1) == sorted([e for e in LOG if e[1] == 1], key=_order)
    assert sorted(e for e in LOG if e[1] == 4) == sorted((what, 4) for what in ROUND)
    one.adapters.use("second")
    assert step() > 0 and [e for e in LOG if e[1] != 2] == []
    assert step(3) == 0 and len(LOG) == 3 * len(ROUND)
    with one.adapters.disabled():
        one.adapters.model(one.x)
    assert step() > 0 and len(LOG) == len(ROUND), "the hooks are there again"
    one.adapters.use("default")
    one.adapters.remove("second")
    assert step() > 0 and [number for _, number in LOG] == [5] * len(ROUND)
    optimizer.param_groups[0]["params"].clear()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert step() == 0 and not LOG, "the optimizer trains no delta any more"
    followed.close()


def _order(entry: tuple[str, int]) -> int:
    return ROUND.index(entry[0])
