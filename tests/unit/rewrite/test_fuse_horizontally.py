"""Readers of one tensor compute their common product once; names, parameters and files stay."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tests.zoo import case
from tnc.decide.pipeline import DEFAULT
from tnc.errors import KernelError
from tnc.nn import batched, shared_input
from tnc.nn.batched import Batch
from tnc.nn.shared_input import SharingLayer, groups_of, share_inputs_
from tnc.rewrite.contract import outputs_of
from tnc.rewrite.subject import ties_of

NAMES = ("bert", "llama")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share however small the product is."""
    monkeypatch.setattr(shared_input, "PAYS", 0)


@cache
def compiled(name: str, fused: bool) -> tnc.api.Compiled:
    example = case(name)
    passes = (*DEFAULT, "fuse-horizontally") if fused else DEFAULT
    rule = {"match": "*", "op": "linear", "structure": "low-rank", "keep": 0.5}
    return tnc.compile(
        example.build(), spec(rule, shares=True, passes=passes), example=example.inputs()
    )


def told(made: tnc.api.Compiled) -> tuple[str, ...]:
    return next(r.edits for r in made.records if r.name == "fuse-horizontally")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_model_that_is_not_fused(name: str) -> None:
    plain, fused = compiled(name, False), compiled(name, True)
    lines = told(fused)
    assert len(lines) >= 2 and all(" compute A once, within " in line for line in lines)
    args, kwargs = case(name).inputs(seed=4)
    gradients = []
    for model in (copy.deepcopy(plain.model), copy.deepcopy(fused.model)):
        out = model(*args, **kwargs)[0]
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
        (out * weights).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()} | {"": out.detach()})
    first, second = gradients
    assert list(first) == list(second)
    for key in first:
        if first[key] is not None:
            gap = float((first[key] - second[key]).norm())
            assert gap <= 1e-5 * (1e-3 + float(first[key].norm())), key


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_brings_the_groups_back(name: str, tmp_path: Path) -> None:
    made = compiled(name, True)
    folder = tnc.save(made, tmp_path / "artifact")
    loaded = tnc.load(folder, model=case(name).build(seed=1))
    inputs = case(name).inputs(3)
    wanted, found = (outputs_of(m, inputs) for m in (made.model, loaded))
    for a, b in zip(wanted, found, strict=True):
        assert float((a - b).norm()) <= 1e-5 * float(a.norm())
    paths = {p: groups_of(m) for p, m in made.model.named_modules() if groups_of(m)}
    assert paths == {p: groups_of(m) for p, m in loaded.named_modules() if groups_of(m)}
    assert paths and ties_of(loaded) == ties_of(made.model)
    assert list(loaded.state_dict()) == list(compiled(name, False).model.state_dict())
    assert tnc.verify(folder, model=case(name).build(seed=2)).ok


def test_densify_leaves_nothing_of_it() -> None:
    dense = tnc.densify(compiled("bert", True).model)
    assert not [m for m in dense.modules() if groups_of(m) or isinstance(m, SharingLayer)]
    assert not any(hasattr(type(m), "_owns_shared_inputs") for m in dense.modules())


def test_what_is_left_alone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tnc.compile(
        case("bert").build(),
        spec(passes=(*DEFAULT, "fuse-horizontally")),
        example=case("bert").inputs(),
    )
    assert all(" one batch of products where that is faster" in line for line in told(made))
    monkeypatch.setattr(batched, "SMALL", 1)
    made = tnc.compile(
        case("bert").build(),
        spec(passes=(*DEFAULT, "fuse-horizontally")),
        example=case("bert").inputs(),
    )
    assert all(": they hold no core in common, and" in line for line in told(made))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    made = tnc.compile(net, spec(passes=(*DEFAULT, "fuse-horizontally")), example=torch.ones(2, 8))
    assert told(made) == ("no structured layers read one tensor",)


BATCHED = {"match": "*", "op": "linear", "structure": "low-rank", "ranks": {"r": 4}}


@cache
def together(name: str) -> tuple[tnc.api.Compiled, tnc.api.Compiled]:
    example = case(name)
    made = []
    for passes in (DEFAULT, (*DEFAULT, "fuse-horizontally")):
        rules = spec(BATCHED, passes=passes)
        made.append(tnc.compile(example.build(), rules, example=example.inputs()))
    return made[0], made[1]


def test_small_layers_of_one_structure_are_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched, "GAIN", 1e9)
    plain, fused = together("bert")
    assert any(
        " are one batch of products where that is faster, within " in line for line in told(fused)
    )
    ran = []
    real = Batch.wants

    def wants(self: Batch, x: Tensor) -> bool:
        ran.append(real(self, x))
        return ran[-1]

    monkeypatch.setattr(Batch, "wants", wants)
    inputs = case("bert").inputs(seed=4)
    folder = tnc.save(fused, tmp_path / "artifact")
    models = (copy.deepcopy(fused.model), tnc.load(folder, model=case("bert").build(seed=1)))
    for model in models:
        ran.clear()
        model.eval()
        with torch.no_grad():
            wanted = outputs_of(copy.deepcopy(plain.model).eval(), inputs)
            for a, b in zip(wanted, outputs_of(model, inputs), strict=True):
                assert float((a - b).norm()) <= 1e-5 * float(a.norm())
            assert ran and all(ran)
            for parameter in model.parameters():
                parameter.data.mul_(1.01)  # versions do not change
            changed = copy.deepcopy(plain.model).eval()
            for parameter in changed.parameters():
                parameter.data.mul_(1.01)
            for a, b in zip(outputs_of(changed, inputs), outputs_of(model, inputs), strict=True):
                assert float((a - b).norm()) <= 1e-5 * float(a.norm())
        ran.clear()
        args, kwargs = inputs
        model(*args, **kwargs)  # with gradients each layer is alone
        assert not any(ran)
    assert not [m for m in tnc.densify(fused.model).modules() if isinstance(m, SharingLayer)]


def test_a_batch_is_given_up_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "GAIN", 0.0)
    monkeypatch.setattr(Batch, "run", lambda *_: pytest.fail("ran together"))
    plain, fused = together("bert")
    inputs = case("bert").inputs(seed=4)
    with torch.no_grad():
        wanted, found = (
            outputs_of(copy.deepcopy(made.model).eval(), inputs) for made in (plain, fused)
        )
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    monkeypatch.setattr(batched, "SMALL", 3)
    with pytest.raises(KernelError, match="a rank of 4 is too large"):
        share_inputs_(copy.deepcopy(plain.model), _group(plain), ())


def _group(made: tnc.api.Compiled) -> list[str]:
    return [
        path
        for path, module in made.model.named_modules()
        if path.rpartition(".")[2] in ("query", "key", "value")
    ][:3]
