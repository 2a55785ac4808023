"""Readers of one tensor compute their common product once; names, parameters and files stay."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import tnc
from tests.compiled import spec
from tests.zoo import case
from tnc.decide.pipeline import DEFAULT
from tnc.nn import shared_input
from tnc.nn.shared_input import SharingLayer, groups_of
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


def test_what_is_left_alone_is_said() -> None:
    made = tnc.compile(
        case("bert").build(),
        spec(passes=(*DEFAULT, "fuse-horizontally")),
        example=case("bert").inputs(),
    )
    assert all(": they hold no core in common" in line for line in told(made))
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    made = tnc.compile(net, spec(passes=(*DEFAULT, "fuse-horizontally")), example=torch.ones(2, 8))
    assert told(made) == ("no structured layers read one tensor",)
