"""Schedulers, scalers, accumulation, hooks and fused paths go on with what is bound."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import tnc
from tnc.optim.rules.galore import GaLore
from tnc.optim.rules.lion import Lion
from tnc.optim.rules.muon import Muon

Optimizer = torch.optim.Optimizer
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
SPEC = tnc.Spec(
    version=1,
    rules=[
        {"match": "0", "structure": "tucker", "keep": 0.8},
        {"match": "3", "structure": "tensor-train", "keep": 0.8},
        {"match": "*", "structure": "dense"},
    ],
)


def net() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(128, 12), nn.Tanh()).double()


def loss_of(model: nn.Module, x: Tensor = X) -> Tensor:
    return (model(x.to(next(model.parameters()).dtype)) - 1).square().mean()


def probe(model: nn.Module):
    yield loss_of(model)


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def bound(make: Callable[[nn.Module], Optimizer], **asked) -> tuple[nn.Module, Optimizer]:
    model = net()
    optimizer = make(model)
    train(model, optimizer, 3)
    made = tnc.compile(model, SPEC, example=X).model
    tnc.bind(model, made, optimizer, **asked or {"probe": probe})
    return made, optimizer


def assert_equal(found: nn.Module, wanted: nn.Module, tolerance: float = 0.0) -> None:
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------- schedulers

SCHEDULES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.8**step),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=9),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on(name) -> None:
    """Rates and momenta are those of a run that was not bound, and cores are trained by them."""
    rates: list[list[tuple[float, float]]] = []
    for binds in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        schedule = SCHEDULES[name](optimizer)
        rates.append([])
        for step in range(8):
            if binds and step == 4:
                made = tnc.compile(model, SPEC, example=X).model
                tnc.bind(model, made, optimizer)
                model = made
            optimizer.zero_grad()
            loss_of(model).backward()
            before = {p: p.detach().clone() for p in model.parameters()}
            optimizer.step()
            (group,) = optimizer.param_groups
            rates[-1].append((group["lr"], group["momentum"]))
            for p, was in before.items():
                moved = was - group["lr"] * optimizer.state[p]["momentum_buffer"]
                torch.testing.assert_close(p.detach(), moved)
            schedule.step(1.0) if name == "plateau" else schedule.step()
    assert rates[0] == rates[1] and len({rate for rate, _ in rates[1][4:]}) > 1


# ---------------------------------------------------------------------------- scalers

SCALED: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3),
    "fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3, fused=True),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, fused=True),
    "lion": lambda m: Lion(m.parameters(), lr=1e-3, weight_decay=0.3),
}


def state_of(optimizer: Optimizer) -> list[object]:
    return [copy.deepcopy(s) for s in optimizer.state.values()]


def same(found: object, wanted: object) -> bool:
    if isinstance(found, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k]) for k in found)
    return torch.equal(found, wanted) if isinstance(found, Tensor) else found == wanted


@pytest.mark.parametrize("kind", SCALED)
def test_a_scaler_goes_on_and_skips_what_overflows(kind) -> None:
    plain, alone = bound(SCALED[kind], warmup=5)
    model = net()
    optimizer = SCALED[kind](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(model: nn.Module, factor: float = 1.0) -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * factor).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(3):
        step(model)
    made = tnc.compile(model, SPEC, example=X).model
    tnc.bind(model, made, optimizer, warmup=5)
    step(made)
    before, held = [p.detach().clone() for p in made.parameters()], state_of(optimizer)
    step(made, float("inf"))
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(p, was) for p, was in zip(made.parameters(), before, strict=True))
    assert all(same(a, b) for a, b in zip(state_of(optimizer), held, strict=True))
    step(made)
    train(plain, alone, 2)
    assert_equal(made, plain, 1e-12)


# ---------------------------------------------------------------------------- accumulation

ACCUMULATED: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3),
    "galore": lambda m: GaLore(
        [p for p in m.parameters() if p.dim() > 1], rank=2, update_every=2, lr=1e-2
    ),
    "muon": lambda m: Muon([p for p in m.parameters() if p.dim() > 1], lr=1e-2),
}


@pytest.mark.parametrize("kind", ACCUMULATED)
def test_microbatches_are_one_step(kind) -> None:
    whole, once = bound(ACCUMULATED[kind])
    model, often = bound(ACCUMULATED[kind])
    train(whole, once, 4)
    for _ in range(4):
        often.zero_grad()
        for part in X.chunk(4):
            (loss_of(model, part) / 4).backward()
        often.step()
    assert_equal(model, whole, 1e-9)


# ---------------------------------------------------------------------------- hooks by layer


def by_layer(optimizers: list[Optimizer]) -> None:
    """Step every optimizer within the backward pass, once all of its parameters have gradients."""
    for optimizer in optimizers:
        held = [p for group in optimizer.param_groups for p in group["params"]]

        def update(_: Tensor, optimizer: Optimizer = optimizer, held: list = held) -> None:
            if all(p.grad is not None for p in held):
                optimizer.step()
                optimizer.zero_grad()

        for parameter in held:
            parameter.register_post_accumulate_grad_hook(update)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_one_optimizer_a_parameter_within_the_backward_pass(kind) -> None:
    make = SCALED[kind]
    made, one = bound(make)
    train(made, one, 4)
    model = net()
    optimizers = [make(nn.ParameterList([p])) for p in model.parameters()]
    by_layer(optimizers)
    for _ in range(3):
        loss_of(model).backward()
    again = tnc.compile(model, SPEC, example=X).model
    for parameter, optimizer in zip(model.parameters(), optimizers):
        held = optimizer.param_groups[0]["params"]
        assert held[0] is parameter
        report = tnc.bind(model, again, optimizer, probe=probe).report
        assert len(report.lines) == len(held)
    assert {id(p) for o in optimizers for p in o.param_groups[0]["params"]} == {
        id(p) for p in again.parameters()
    }
    by_layer(optimizers)
    for _ in range(4):
        loss_of(again).backward()
        assert all(p.grad is None for p in again.parameters())
    assert_equal(again, made, 1e-9)


# ---------------------------------------------------------------------------- foreach and fused

PATHS = [
    (torch.optim.AdamW, {"weight_decay": 0.3, "lr": 1e-2, "amsgrad": True}, ("foreach", "fused")),
    (torch.optim.Adam, {"lr": 1e-2}, ("foreach", "fused")),
    (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}, ("foreach", "fused")),
    (torch.optim.Adagrad, {"lr": 1e-2}, ("foreach", "fused")),
    (torch.optim.RMSprop, {"lr": 1e-3, "centered": True}, ("foreach",)),
    (torch.optim.NAdam, {"lr": 1e-2, "decoupled_weight_decay": True}, ("foreach",)),
    (torch.optim.Adamax, {"lr": 1e-2}, ("foreach",)),
]


@pytest.mark.parametrize("last", [False, True], ids=["", "channels-last"])
@pytest.mark.parametrize("kind, options, paths", PATHS, ids=lambda x: getattr(x, "__name__", ""))
def test_every_path_makes_the_plain_loops_steps(kind, options, paths, last) -> None:
    def run(**path: bool) -> nn.Module:
        model = net()
        if last:
            model.to(memory_format=torch.channels_last)
        optimizer = kind(model.parameters(), **options, **path)
        train(model, optimizer, 3)
        made = tnc.compile(model, SPEC, example=X).model
        for core in made[3].cores.values():  # as a fit may leave them: a fused step must know
            core.data = core.data.movedim(0, -1).contiguous().movedim(-1, 0)
        assert not all(core.is_contiguous() for core in made[3].cores.values())
        tnc.bind(model, made, optimizer, policy="pull", warmup=0)
        train(made, optimizer, 3)
        dense = tnc.densify(made)
        tnc.bind(made, dense, optimizer)
        train(dense, optimizer, 2)
        return dense

    plain = run(foreach=False)
    for path in paths:
        assert_equal(run(**{path: True}), plain, 1e-9)


def test_a_rate_that_is_a_tensor_decays_a_product_by_its_share() -> None:
    rate = torch.tensor(0.1, dtype=torch.float64)
    made, optimizer = bound(
        lambda m: torch.optim.AdamW(m.parameters(), lr=rate, weight_decay=0.5), policy="reset"
    )
    before = made[3].weight.detach().clone()
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(made[3].weight.detach(), 0.95 * before, rtol=1e-12, atol=0)
