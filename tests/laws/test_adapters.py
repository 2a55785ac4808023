"""Laws of every registered adaptation method, beside every kind of weight."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import CASES, method_of
from tnc.adapters import Adapters, Method, adapt, adapt_, storing
from tnc.adapters.bank import bank_of
from tnc.adapters.method import methods
from tnc.adapters.place import place_of
from tnc.errors import PlanError
from tnc.nn import StructuredLayer


def loss(output: Tensor, batch: Any) -> Tensor:
    return (output**2).mean()


def made(
    method: str | Method, case: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor, Adapters]:
    """Return base model, input and adapters; skip where the method refuses every weight."""
    torch.manual_seed(0)
    model = CASES[case].make().to(dtype).eval()
    drawn = [CASES[case].draw() for _ in range(3)]
    batches = [d.to(dtype) if d.is_floating_point() else d for d in drawn]
    original = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    try:
        chosen = method_of(method) if isinstance(method, str) else method
        found = adapt(model, chosen, calibration=batches, loss=loss, original=original, seed=1)
    except PlanError as error:
        if "no weight can be adapted" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0][:120])
    return model, batches[0], found


def moved(adapters: Adapters) -> None:
    """Give what is trained other values, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapters.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (0.2 * noise).to(parameter.dtype)


def _owner(model: nn.Module, name: str) -> nn.Module:
    """Return the module that holds a parameter, the layer where it is a core."""
    return model.get_submodule(name.rpartition(".")[0].removesuffix(".cores"))


every = pytest.mark.parametrize("method", sorted(methods.all()))
cases = pytest.mark.parametrize("case", sorted(CASES))


@every
@cases
def test_starts_as_the_base(method: str, case: str) -> None:
    model, x, adapters = made(method, case)
    if methods.get(method).offset:
        pytest.skip(methods.get(method).offset)
    assert torch.allclose(adapters.model(x), model(x), rtol=1e-9, atol=1e-9)


@every
@cases
def test_layer_equals_changed_weight(method: str, case: str) -> None:
    """What is added to outputs and what is added to weights are one thing, in every gradient."""
    _, x, adapters = made(method, case)
    moved(adapters)
    trained = list(adapters.parameters())
    assert trained
    y = adapters.model(x)
    ours = torch.autograd.grad(loss(y, x), trained, allow_unused=True)
    for module in adapters.model.modules():
        bank = bank_of(module)
        if bank is not None and bank.kind not in ("", "structured"):
            bank.merged = {"weight": bank.changed("weight", module._parameters["weight"])}
    again = adapters.model(x)
    assert torch.allclose(y, again, rtol=1e-8, atol=1e-9)
    theirs = torch.autograd.grad(loss(again, x), trained, allow_unused=True)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@every
@cases
def test_trains_its_own_parameters_alone(method: str, case: str) -> None:
    model, x, adapters = made(method, case)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mine = {id(p) for p in adapters.parameters()}
    declared = {id(p) for d in adapters.deltas().values() for p in d.trained.values()}
    assert mine == declared
    loss(adapters.model(x), x).backward()
    for parameter in adapters.model.parameters():
        assert parameter.grad is None or id(parameter) in mine
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


@every
@cases
def test_merge_and_unmerge(method: str, case: str) -> None:
    model, x, adapters = made(method, case)
    moved(adapters)
    y = adapters.model(x)
    with adapters.disabled():
        assert torch.allclose(adapters.model(x), model(x), rtol=1e-12, atol=1e-12)
    drifts = adapters.merge()
    assert {drift.weight for drift in drifts} == set(adapters.deltas())
    assert all(drift.relative < 1e-9 for drift in drifts)
    assert torch.allclose(adapters.model(x), y, rtol=1e-8, atol=1e-9)
    adapters.unmerge()
    assert torch.equal(adapters.model(x), y)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = adapters.unload()
    assert torch.allclose(plain(x), y, rtol=1e-8, atol=1e-9)
    assert {type(m) for m in plain.modules()} == {type(m) for m in model.modules()}
    more = set(plain.state_dict()) - set(model.state_dict())
    assert set(model.state_dict()) <= set(plain.state_dict())
    assert all(isinstance(_owner(plain, name), StructuredLayer) for name in more)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())


@every
@cases
def test_copies_pickles_saves(method: str, case: str, tmp_path: Path) -> None:
    model, x, adapters = made(method, case)
    moved(adapters)
    y = adapters.model(x)
    assert torch.equal(copy.deepcopy(adapters.model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(adapters.model))(x), y)
    storing.save(adapters, tmp_path / "a")
    again = storing.load(model, tmp_path / "a")
    assert torch.allclose(again.model(x), y, rtol=1e-9, atol=1e-10)
    mine, theirs = dict(adapters.named_parameters()), dict(again.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@every
def test_is_the_same_from_the_same_seed(method: str) -> None:
    _, _, first = made(method, "linear")
    torch.manual_seed(5)
    _, _, second = made(method, "linear")
    for a, b in zip(first.parameters(), second.parameters()):
        assert torch.equal(a, b)


@every
def test_weights_of_16_bits(method: str) -> None:
    _, x, adapters = made(method, "linear", torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in adapters.parameters())
    moved(adapters)
    y = adapters.model(x)
    assert y.dtype == torch.bfloat16
    loss(y, x).backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in adapters.parameters())


@every
def test_trains(method: str) -> None:
    """Twenty steps of an optimizer, with all that the method does in training, lower a loss."""
    from tnc.adapters.following import follow

    _, x, adapters = made(method, "linear", torch.float32)
    target = torch.randn(x.shape[0], 5, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(adapters.parameters(), lr=0.02)
    followed = follow(adapters, optimizer)
    adapters.model.train()
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        value = ((adapters.model(x) - target) ** 2).mean()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert followed.steps == 20
    assert values[-1] < values[0]


def test_the_oracle_can_fail() -> None:
    _, x, adapters = made("lora", "linear")
    moved(adapters)
    y = adapters.model(x)
    for delta in adapters.deltas().values():
        delta.factor *= 1.01
    assert not torch.allclose(adapters.model(x), y, rtol=1e-8, atol=1e-9)


def test_tied_weights_have_tied_deltas() -> None:
    _, _, adapters = made("lora", "tied")
    model: Any = adapters.model
    table, head = (bank_of(m).held("default")["weight"] for m in (model.table, model.head))
    assert table.cores["A"] is head.cores["A"]
    assert len(list(adapters.parameters())) == 2
    assert tnc.adapters.of(adapters.model).names == ("default",)


@every
@cases
def test_becomes_lora(method: str, case: str) -> None:
    """Without a rank the conversion loses nothing; truncated, it loses what it says it does."""
    _, x, adapters = made(method, case)
    moved(adapters)
    y = adapters.model(x)
    whole = adapters.to_lora(name="whole")
    adapters.use("whole")
    assert whole.error < 1e-9
    assert torch.allclose(adapters.model(x), y, rtol=1e-7, atol=1e-8)
    told = {line.weight: line for line in adapters.to_lora(1, adapter="default", name="one").lines}
    for name, delta in adapters.deltas("default").items():
        place = place_of(adapters.model, "default", name)
        weight = place.weight(adapters.model)
        base = delta.method.base(delta, weight)
        change = (base + delta.method.change(delta, base) - weight).detach()
        lost = change - adapters.deltas("one")[name].dense().detach()
        assert told[name].norm == pytest.approx(float(change.norm()), rel=1e-6)
        assert told[name].error * told[name].norm == pytest.approx(float(lost.norm()), rel=1e-6)
        assert told[name].rank == 1


def test_mixes_exactly() -> None:
    _, x, adapters = made("lora", "linear")
    adapt_(adapters.model, "dora{rank=2}", name="second", example=x)
    moved(adapters)
    adapters.use(default=0.5, second=-0.25)
    y = adapters.model(x)
    found = adapters.mix("mixed", {"default": 0.5, "second": -0.25})
    adapters.use("mixed")
    assert found.error < 1e-12
    assert torch.allclose(adapters.model(x), y, rtol=1e-9, atol=1e-10)
    less = adapters.mix("less", {"default": 0.5, "second": -0.25}, energy=0.9)
    assert 0 < less.error <= 0.1**0.5 + 1e-9
    adapters.use("less")
    assert not torch.allclose(adapters.model(x), y, rtol=1e-6, atol=1e-6)
    with pytest.raises(PlanError, match="there is an adapter named 'mixed'"):
        adapters.mix("mixed", {"default": 1.0})
    with pytest.raises(PlanError, match="no adapter 'none'"):
        adapters.mix("other", {"none": 1.0})
    with pytest.raises(PlanError, match="energy is 2"):
        adapters.to_lora(energy=2, adapter="default", name="other")


@every
@pytest.mark.parametrize("case", ["linear", "conv", "experts", "compressed"])
def test_a_mix_is_what_the_shares_compute(method: str, case: str) -> None:
    """Switched in by shares or mixed into one adapter: outputs, weights and merging agree."""
    _, x, adapters = made(method, case)
    moved(adapters)
    adapt_(adapters.model, "lora{rank=1}", name="second", example=x)
    moved(adapters)
    shares = {"default": 0.3, "second": -1.5}
    adapters.use(**shares)
    y = adapters.model(x)
    adapters.mix("mixed", shares)
    adapters.merge()
    assert torch.allclose(adapters.model(x), y, rtol=1e-7, atol=1e-8)
    adapters.unmerge()
    adapters.use("mixed")
    assert torch.allclose(adapters.model(x), y, rtol=1e-7, atol=1e-8)
    adapters.use(default=0.0)
    with adapters.disabled():
        base = adapters.model(x)
    assert torch.allclose(adapters.model(x), base, rtol=1e-9, atol=1e-9)


@every
@cases
def test_counts_what_it_trains(method: str, case: str) -> None:
    """A dry run and a budget count without values what is then trained."""
    _, _, adapters = made(method, case)
    for delta in adapters.deltas().values():
        place = place_of(adapters.model, "default", delta.site.name)
        counted = delta.method.trained(delta.site, partial(place.mapped, adapters.model))
        assert counted == sum(p.numel() for p in delta.trained.values())


@every
@cases
def test_sizes_are_of_the_same_method(method: str, case: str) -> None:
    """Every size that a budget may choose can be attached, and the sizes grow."""
    _, _, adapters = made(method, case)
    for delta in adapters.deltas().values():
        found = delta.method.sizes(delta.site) if delta.method.sized else ()
        assert all(type(each) is type(delta.method) for each in found)
        assert not any(each.refuses(delta.site) for each in found)
        kept = [each.kept([4.0, 2.0, 1.0]) for each in found]
        assert kept == sorted(kept)
