"""Laws that every registered optimizer rule meets: nobody has to remember to add it here."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.laws.rules_data import options_for
from tnc.binding import bind
from tnc.decide.optimizers import checked
from tnc.decide.option_text import print_form
from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim.declaring import MISSING
from tnc.optim.kinds import OURS, Kind
from tnc.optim.options import misfit
from tnc.optim.rule import STEP, Rule, rules

ALL = rules.all()
each = pytest.mark.parametrize("name", list(ALL))


class Net(nn.Module):
    """Two matrices, wide and tall, and a kernel of four axes; no vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.wide = nn.Linear(24, 10, bias=False)
        self.tall = nn.Linear(10, 30, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = functional.gelu(self.conv(x)).mean(-1).flatten(1)
        return self.tall(functional.gelu(self.wide(found)))


def setting(dtype: torch.dtype = torch.float32) -> tuple[Net, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = Net().to(dtype)
    return net, torch.randn(16, 2, 4, 4).to(dtype), torch.randn(16, 30).to(dtype)


GIVEN = {"model": lambda net: net}
"""How a test gives what rules may need beside parameters and options."""


def made(name: str, net: nn.Module, **options: object) -> Rule:
    given = {need: GIVEN[need](net) for need in ALL[name].needs}
    return ALL[name](net.parameters(), **given, **options)  # type: ignore[call-arg,arg-type]


def built(name: str, net: nn.Module) -> Rule:
    return made(name, net, **options_for(name, ALL[name]))


def run(net: Net, rule: Rule, x: torch.Tensor, y: torch.Tensor, steps: int) -> list[float]:
    losses = []
    for number in range(steps):
        if rule.estimates and number % 5 == 0:
            estimate(net, rule, x)
        rule.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        rule.step()
        losses.append(float(loss.detach()))
    return losses


def estimate(net: Net, rule: Rule, x: torch.Tensor) -> None:
    """Give a rule the gradient of a loss whose answers are drawn from the model's own."""
    rule.zero_grad()
    found = net(x)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(found)
    (found - (found.detach() + noise)).square().mean().backward()
    rule.update_hessian(samples=len(x))  # type: ignore[attr-defined]


@each
def test_its_options_are_declared_once(name: str) -> None:
    net, _, _ = setting()
    rule = built(name, net)
    signature = inspect.signature(ALL[name])
    assert next(iter(signature.parameters)) == "params"
    for option, each in ALL[name].options().items():
        assert option in rule.param_groups[0], "every option is of the groups"
        assert signature.parameters[option].default is each.default
        assert not hasattr(rule, option), "its value would not be that of the groups"
        if each.default is not MISSING:
            assert not misfit(each.default, each.hint)
        with pytest.raises(BindError, match=f"{option} is <object"):
            ALL[name].check({option: object()})
    checked(print_form({"kind": name, **options_for(name, ALL[name])}))
    with pytest.raises(TypeError, match="has no option 'lrr'; did you mean 'lr'"):
        made(name, net, lrr=0.1)


@each
def test_it_trains(name: str) -> None:
    net, x, y = setting()
    losses = run(net, built(name, net), x, y, 60)
    assert all(loss == loss for loss in losses)
    assert losses[-1] < losses[0]


@each
def test_its_slots_are_declared_and_hold_tensors_and_numbers(name: str) -> None:
    net, x, y = setting()
    rule = built(name, net)
    run(net, rule, x, y, 3)
    for parameter in net.parameters():
        state = rule.state[parameter]
        assert float(state[STEP]) == 3
        assert set(state) - {STEP, "seed"} <= set(rule.kinds)
        for slot, value in state.items():
            assert isinstance(value, torch.Tensor | int | float), slot
            if isinstance(value, torch.Tensor):
                assert not value.requires_grad
            if rule.kinds.get(slot) in (Kind.COVECTOR, Kind.DIAGONAL):
                read = rule.read(state, parameter, rule.param_groups[0])
                assert slot not in read or read[slot].shape == parameter.shape


def layer(network: str) -> StructuredLayer:
    structure = Structure.of(parse_network(network))
    generator = torch.Generator().manual_seed(0)
    cores = {
        core: 0.4 * torch.randn(shape, generator=generator)
        for core, shape in structure.shapes.items()
    }
    return StructuredLayer(structure, LinearView(), cores)


@each
@pytest.mark.parametrize("cores", [False, True])
def test_its_memory_is_what_the_formula_says(name: str, cores: bool) -> None:
    net, x, y = setting()
    if cores:
        net.wide = layer("B[o r] A[r i] : i -> o | o=10 r=6 i=24")  # type: ignore[assignment]
        net.tall = layer("B[k o r] A[k r i] : (k i) -> (k o) | k=2 o=15 r=4 i=5")  # type: ignore[assignment]
    rule = built(name, net)
    run(net, rule, x, y, 3)
    group = rule.param_groups[0]
    for parameter in net.parameters():
        tensors = [
            value
            for slot, value in rule.state[parameter].items()
            if isinstance(value, torch.Tensor) and slot != STEP
        ]
        held = sum(value.untyped_storage().nbytes() for value in tensors)
        assert held == rule.bytes_of(parameter, group)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    net, x, y = setting(dtype)
    rule = built(name, net)
    run(net, rule, x, y, 7)
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": rule.state_dict()}, file)
    expected = run(net, rule, x, y, 20)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = Net().to(dtype)
    again.load_state_dict(saved["model"])
    other = built(name, again)
    other.load_state_dict(saved["optimizer"])
    assert run(again, other, x, y, 20) == expected


@each
def test_it_copies_and_pickles(name: str) -> None:
    net, x, y = setting()
    rule = built(name, net)
    run(net, rule, x, y, 3)
    copied = copy.deepcopy((net, rule))
    read = pickle.loads(pickle.dumps((net, rule)))
    expected = run(net, rule, x, y, 3)
    assert run(*copied, x, y, 3) == expected
    assert run(*read, x, y, 3) == expected


@each
def test_no_rate_no_change_and_no_gradient_no_state(name: str) -> None:
    net, x, y = setting()
    rule = built(name, net)
    for group in rule.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in net.parameters()]
    net.tall.weight.requires_grad_(False)
    run(net, rule, x, y, 2)
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters()))
    assert not rule.state.get(net.tall.weight)


@each
def test_it_gives_the_closures_loss_and_refuses_wrong_options(name: str) -> None:
    net, x, y = setting()
    rule = built(name, net)

    def closure() -> torch.Tensor:
        rule.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss

    assert float(rule.step(closure).detach()) > 0
    with pytest.raises(BindError, match="lr is -1"):
        made(name, net, **{**options_for(name, ALL[name]), "lr": -1.0})


@each
def test_it_is_bound_when_a_weight_becomes_cores(name: str) -> None:
    net, x, y = setting()
    rule = built(name, net)
    run(net, rule, x, y, 5)
    made = copy.deepcopy(net)
    u, s, v = torch.linalg.svd(net.wide.weight.detach(), full_matrices=False)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=10 r=10 i=24"))
    cores = {"B": u * s.sqrt(), "A": s.sqrt()[:, None] * v}
    made.wide = StructuredLayer(structure, LinearView(), cores)  # type: ignore[assignment]

    def probe(model: nn.Module):
        for _ in range(2):
            yield (model(x) - y).square().mean()

    bound = bind(net, made, rule, probe=probe)
    assert bound.optimizer is rule
    assert {line.parameter for line in bound.report.lines} == {
        name for name, _ in made.named_parameters()
    }
    losses = run(made, rule, x, y, 30)
    assert all(loss == loss for loss in losses)
    assert losses[-1] < 1.5 * losses[0]


def low_rank(net: Net) -> Net:
    """A copy whose wide matrix is two factors; one of them lies transposed in memory."""
    made = copy.deepcopy(net)
    u, s, v = torch.linalg.svd(net.wide.weight.detach().float(), full_matrices=False)
    structure = Structure.of(parse_network("B[o r] A[r i] : i -> o | o=10 r=10 i=24"))
    cores = {"B": u * s.sqrt(), "A": (s.sqrt()[:, None] * v).T.contiguous().T}
    typed = {name: core.to(net.wide.weight.dtype) for name, core in cores.items()}
    made.wide = StructuredLayer(structure, LinearView(), typed)  # type: ignore[assignment]
    return made


def form_of_state(state: dict[str, object]) -> dict[str, object]:
    return {
        slot: (tuple(value.shape), value.dtype, value.stride(), value.device)
        if isinstance(value, torch.Tensor)
        else type(value)
        for slot, value in state.items()
        if slot not in OURS
    }


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", ["pull", "reset"])
def test_bound_state_is_of_the_form_that_the_rule_makes_itself(
    name: str, dtype: torch.dtype, policy: str
) -> None:
    net, x, y = setting(dtype)
    rule = built(name, net)
    run(net, rule, x, y, 5)
    cores = low_rank(net)
    bind(net, cores, rule, policy=policy)  # type: ignore[arg-type]
    twin = copy.deepcopy(cores)
    run(cores, rule, x, y, 1)
    fresh = built(name, twin)
    run(twin, fresh, x, y, 1)
    for (label, bound), own in zip(cores.named_parameters(), twin.parameters()):
        if "cores" in label:
            assert form_of_state(rule.state[bound]) == form_of_state(fresh.state[own]), label


def test_the_memory_law_can_fail() -> None:
    net, x, y = setting()
    rule = built("lion", net)
    run(net, rule, x, y, 1)
    held = rule.state[net.wide.weight]["exp_avg"].untyped_storage().nbytes()
    assert held != rule.state_bytes((11, 24), rule.param_groups[0])
