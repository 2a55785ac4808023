"""Several optimizers as one do what each does alone, and are saved, scheduled and bound as one."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tnc.binding import bind
from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim import Together, follow, form_of
from tnc.optim.kinds import Kind
from tnc.optim.rule import rules


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


X = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(32, 5, generator=torch.Generator().manual_seed(2))


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def parts(model: Net) -> dict[str, torch.optim.Optimizer]:
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return {
        "muon": rules.get("muon")([model.first.weight], lr=0.02),
        "adamw": torch.optim.AdamW(vectors, lr=0.01),
        "sgd": torch.optim.SGD([{"params": [model.last.weight], "lr": 0.05}], momentum=0.9),
    }


def train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> list[float]:
    losses = []
    x, y = X.to(next(model.parameters()).dtype), Y.to(next(model.parameters()).dtype)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_it_steps_as_its_parts_do_alone() -> None:
    one, other = net(), net()
    apart = list(parts(other).values())
    assert train(one, [Together(parts(one))], 12) == train(other, apart, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_bit_for_bit(dtype: torch.dtype) -> None:
    model = net(dtype)
    optimizer = Together(parts(model))
    train(model, [optimizer], 5)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    expected = train(model, [optimizer], 8)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again = net(dtype)
    again.load_state_dict(weights)
    other = Together(parts(again))
    other.load_state_dict(state)
    assert other.state[again.first.weight]["momentum_buffer"].dtype == torch.float32
    assert all(part.state is other.state for part in other.parts)
    assert train(again, [other], 8) == expected


def test_it_copies_and_pickles() -> None:
    model = net()
    optimizer = Together(parts(model))
    train(model, [optimizer], 3)
    copied = copy.deepcopy((model, optimizer))
    read = pickle.loads(pickle.dumps((model, optimizer)))
    expected = train(model, [optimizer], 3)
    for other, own in (copied, read):
        assert all(group in own.param_groups for part in own.parts for group in part.param_groups)
        assert train(other, [own], 3) == expected


def test_schedulers_hooks_and_scalers_work_on_it() -> None:
    model = net()
    optimizer = Together(parts(model))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(0))
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    train(model, [optimizer], 1)
    rates.step()
    assert [group["lr"] for group in optimizer.parts[2].param_groups] == [0.025]
    assert seen == [0, 1]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale((model(X) - Y).square().mean()).backward()
    model.last.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))
    with pytest.raises(ValueError, match="momentum"):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)


def test_a_closure_is_called_once() -> None:
    model = net()
    optimizer = Together(parts(model))
    calls: list[None] = []

    def closure() -> torch.Tensor:
        calls.append(None)
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0
    assert len(calls) == 1


def test_groups_are_added_to_the_part_that_they_name() -> None:
    model, more = net(), nn.Parameter(torch.ones(3, 3))
    optimizer = Together(parts(model))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.add_param_group({"params": more, "lr": 0.1, "part": "muon", "initial_lr": 0.1})
    rates.base_lrs.append(0.1)
    assert optimizer.part_of(optimizer.param_groups[-1]) is optimizer.parts[0]
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert [group["part"] for group in optimizer.param_groups] == ["muon", "adamw", "sgd", "muon"]
    assert optimizer.param_groups[-1]["params"][0] is more
    assert optimizer.param_groups[-1] is optimizer.parts[0].param_groups[-1]
    with pytest.raises(BindError, match="does not say which part"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(BindError, match="has part 'lion'"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "part": "lion"})
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model.norm.bias], "part": "sgd"})
    with pytest.raises(ValueError, match="more than one parameter group"):
        Together({"a": torch.optim.SGD([more]), "b": torch.optim.SGD([more])})


def test_states_of_other_parts_are_refused() -> None:
    model = net()
    optimizer = Together(parts(model))
    train(model, [optimizer], 1)
    state = optimizer.state_dict()
    swapped = dict(reversed(parts(model).items()))
    with pytest.raises(BindError, match=r"\['muon', 'adamw', 'sgd'\]"):
        Together(swapped).load_state_dict(state)
    state["param_groups"][0]["params"] = []
    with pytest.raises(ValueError, match="size"):
        optimizer.load_state_dict(state)
    with pytest.raises(BindError, match="cannot be one of several"):
        Together({"a": optimizer})
    with pytest.raises(BindError, match="no optimizer"):
        Together({})


def test_each_group_has_its_form_and_is_bound_by_it() -> None:
    model = net()
    optimizer = Together(parts(model))
    train(model, [optimizer], 6)
    kinds = [set(form_of(optimizer, group).kinds) for group in optimizer.param_groups]
    assert kinds[0] >= {"momentum_buffer"} and kinds[1] >= {"exp_avg_sq"}
    assert form_of(optimizer, optimizer.param_groups[0]).kinds["step"] is Kind.SCALAR
    with pytest.raises(BindError, match="none of the parts"):
        form_of(optimizer)
    momentum = optimizer.state[model.first.weight]["momentum_buffer"].clone()
    made = copy.deepcopy(model)
    layers = {}
    for name, (o, i) in {"first": (16, 12), "last": (5, 16)}.items():
        weight = getattr(model, name).weight.detach()
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        text = f"B[o r] A[r i] : i -> o | o={o} r={len(s)} i={i}"
        structure = Structure.of(parse_network(text))
        cores = {"B": u * s.sqrt(), "A": s.sqrt()[:, None] * v}
        bias = getattr(model, name).bias.detach().clone()
        layers[name] = StructuredLayer(structure, LinearView(), cores, bias)
        setattr(made, name, layers[name])
    bound = bind(model, made, optimizer)
    assert bound.optimizer is optimizer
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == {id(p) for p in layers["first"].cores.values()}
    assert groups[2] == {id(p) for p in layers["last"].cores.values()}
    b, a = layers["first"].cores["B"], layers["first"].cores["A"]
    pulled = optimizer.state[b]["momentum_buffer"]
    assert torch.allclose(pulled, momentum @ a.detach().T, atol=1e-5)
    losses = train(made, [optimizer], 20)
    assert losses[-1] < losses[0]
    assert follow(optimizer) is optimizer
