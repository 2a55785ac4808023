"""Binding: order of groups, whole states, errors that change nothing, decay of products."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import tnc
from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim import FORMS
from tnc.optim.kinds import OURS

OPTIONS = {
    torch.optim.SGD: {"lr": 0.1, "momentum": 0.9},
    torch.optim.AdamW: {"amsgrad": True},
    torch.optim.RMSprop: {"centered": True, "momentum": 0.9},
}
ELEMENTWISE = [kind for kind in FORMS if kind is not torch.optim.Muon]


def loss(model: nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 128).reshape(16, 8)
    return (model(x.sin().to(next(model.parameters()).dtype)) - 1).square().mean()


def setting(kind, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    optimizer = kind(net.parameters(), **{**OPTIONS.get(kind, {}), **options})
    train(net, optimizer, 5)
    return net, factored(net), optimizer


def factored(net: nn.Module) -> nn.Module:
    made = copy.deepcopy(net)
    weight = net[0].weight.detach()
    wide = torch.promote_types(weight.dtype, torch.float32)
    u, s, v = torch.linalg.svd(weight.to(wide), full_matrices=False)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=6 r=6 i=8"))
    cores = {"B": (u * s.sqrt()).to(weight), "A": (s.sqrt()[:, None] * v).to(weight)}
    made[0] = StructuredLayer(structure, LinearView(), cores, made[0].bias)
    return made


def train(net: nn.Module, optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def probe(model: nn.Module):
    yield loss(model)


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("policy", ["auto", "reset", "pull", "probe"])
def test_every_optimizer_goes_on_and_back(kind, policy) -> None:
    net, made, optimizer = setting(kind)
    tnc.bind(net, made, optimizer, policy=policy, probe=probe)
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in made.parameters()]
    for parameter in held:
        state = optimizer.state[parameter]
        assert state
        for slot in ("exp_avg_sq", "square_avg", "exp_inf"):
            if slot in state and float(state["step"]) > 0:
                assert bool((state[slot] > 0).all())
    assert all(value == value for value in train(made, optimizer, 4))
    dense = tnc.densify(made)
    tnc.bind(made, dense, optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in dense.parameters()
    ]
    assert all(value == value for value in train(dense, optimizer, 4))


def form_of_state(state: dict) -> dict:
    return {
        slot: (tuple(value.shape), value.dtype, value.squeeze().stride(), value.device)
        for slot, value in state.items()
        if slot not in OURS
    }


@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("policy", ["reset", "pull"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bound_state_is_of_the_form_that_the_optimizer_makes_itself(kind, policy, dtype) -> None:
    torch.manual_seed(0)
    matrices = kind is torch.optim.Muon
    net = nn.Sequential(nn.Linear(8, 6, bias=not matrices), nn.Tanh(), nn.Linear(6, 4, bias=False))
    optimizer = kind(net.to(dtype).parameters(), **OPTIONS.get(kind, {}))
    train(net, optimizer, 5)
    made = factored(net)
    tnc.bind(net, made, optimizer, policy=policy)
    twin = copy.deepcopy(made)
    train(made, optimizer, 1)
    own = kind(twin.parameters(), **OPTIONS.get(kind, {}))
    train(twin, own, 1)
    for bound, fresh in zip(made.parameters(), twin.parameters(), strict=True):
        assert form_of_state(optimizer.state[bound]) == form_of_state(own.state[fresh])


@pytest.mark.parametrize("held", ["all", "trained"])
def test_what_is_frozen_stays_where_it_was(held) -> None:
    """Frozen weights become frozen cores, held by who held the weights, and are not trained."""
    torch.manual_seed(0)
    parts = nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    net = nn.Sequential(*parts)
    net[2].requires_grad_(False)
    x = torch.randn(8, 16)
    params = [p for p in net.parameters() if held == "all" or p.requires_grad]
    optimizer = torch.optim.AdamW(params, weight_decay=0.5)
    rules = [
        {"match": ["0", "2"], "structure": "low-rank", "keep": 0.75},
        {"match": "*", "structure": "dense"},
    ]
    (net(x) - 1).square().mean().backward()
    optimizer.step()
    made = tnc.compile(net, tnc.Spec(version=1, rules=rules), example=x).model
    report = tnc.bind(net, made, optimizer, policy="pull").report
    wanted = [p for p in made.parameters() if held == "all" or p.requires_grad]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in wanted]
    frozen = dict(made[2].named_parameters(prefix="2"))
    assert {"2.cores.A", "2.cores.B", "2.bias"} == set(frozen)
    assert not any(p.requires_grad or optimizer.state.get(p) for p in frozen.values())
    told = {line.parameter: line for line in report.lines}
    assert (frozen.keys() <= told.keys()) is (held == "all")
    if held == "all":
        assert told["2.cores.A"].reason == "it is not trained"
    before = {name: p.detach().clone() for name, p in frozen.items()}
    optimizer.zero_grad()
    (made(x) - 1).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(frozen[name], was) for name, was in before.items())


def test_a_saved_state_goes_on_as_if_nothing_had_happened() -> None:
    net, made, optimizer = setting(torch.optim.AdamW, weight_decay=0.1)
    tnc.bind(net, made, optimizer, probe=probe)
    file = io.BytesIO()
    torch.save((made.state_dict(), optimizer.state_dict()), file)
    again = copy.deepcopy(made)
    expected = train(made, optimizer, 8)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again.load_state_dict(weights)
    other = tnc.follow(torch.optim.AdamW(again.parameters(), amsgrad=True))
    other.load_state_dict(state)
    assert train(again, other, 8) == expected


@pytest.mark.parametrize("closure", [False, True])
def test_a_product_decays_as_its_weight(closure) -> None:
    net, made, optimizer = setting(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    tnc.bind(net, made, optimizer, policy="reset")
    before = made[0].weight.detach().clone()

    def still() -> torch.Tensor:
        for parameter in made.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return torch.zeros(())

    if closure:
        optimizer.zero_grad()
        optimizer.step(still)
    else:
        still()
        optimizer.step()
    torch.testing.assert_close(made[0].weight.detach(), 0.95 * before, rtol=1e-13, atol=0)


def test_gradients_that_were_gathered_are_pulled() -> None:
    net, made, optimizer = setting(torch.optim.AdamW)
    optimizer.zero_grad()
    loss(net).backward()
    tnc.bind(net, made, optimizer)
    found = {name: p.grad.clone() for name, p in made.named_parameters()}
    optimizer.zero_grad()
    loss(made).backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("wrong", ["slot", "model", "other"])
def test_an_error_changes_nothing(wrong) -> None:
    net, made, optimizer = setting(torch.optim.AdamW)
    if wrong == "slot":
        optimizer.state[net[2].weight]["mystery"] = torch.zeros(3)
    held = list(optimizer.param_groups[0]["params"])
    state = {p: dict(s) for p, s in optimizer.state.items()}
    args = {
        "slot": (net, made),
        "model": (copy.deepcopy(net), made),
        "other": (net, nn.ModuleDict({"x": nn.Linear(2, 2)})),
    }[wrong]
    message = {"slot": "mystery", "model": "nothing that the optimizer", "other": "has no"}[wrong]
    with pytest.raises(BindError, match=message):
        tnc.bind(*args, optimizer)
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"]))
    assert all(optimizer.state[p].keys() == s.keys() for p, s in state.items())
    assert all(optimizer.state[p][k] is v for p, s in state.items() for k, v in s.items())


def test_rules_are_there_by_name() -> None:
    assert tnc.optim.GaLore.__name__ == "GaLore"
    with pytest.raises(AttributeError, match="NoSuchRule"):
        _ = tnc.optim.NoSuchRule
