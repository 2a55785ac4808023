"""Merging: structured bases become sums, exactly; rounding is said; what is not finite is refused.

The oracle is the dense weight of base and deltas, worked out by einsum from the cores.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.laws.adapters_data import CASES, Tied
from tnc.adapters import Adapters, adapt_
from tnc.errors import PlanError
from tnc.nn import StructuredLayer

BASES = ("low-rank", "tensor-train", "kronecker", "tucker", "block-tensor-train", "cp")
METHODS = (
    "lora{rank=2, alpha=3}",
    "dora{rank=2}",
    "structured{family=tensor-train, rank=2, scale=0.5}",
    "structured{family=low-rank + sparse, rank=5}",
)


def compressed(kind: str, structure: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = {
        "linear": (nn.Linear(10, 14), torch.randn(5, 10)),
        "conv": (nn.Conv2d(8, 6, 3, padding=1), torch.randn(2, 8, 5, 5)),
        "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2), torch.randn(2, 6, 4, 4)),
        "embedding": (nn.Embedding(30, 8), torch.randint(0, 30, (4, 6))),
    }[kind]
    spec = tnc.Spec(
        version=1, round_to=1, rules=[{"match": "*", "structure": structure, "keep": 0.7}]
    )
    x = x.double() if x.is_floating_point() else x
    return tnc.compile(nn.Sequential(net).double(), spec, example=x).model.eval(), x


def stirred(adapters: Adapters) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [*BASES, "low-rank + sparse"])
def test_linear_bases(base: str, method: str) -> None:
    check("linear", base, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["conv", "transposed", "embedding"])
@pytest.mark.parametrize("base", ["low-rank", "tensor-train", "tucker"])
def test_other_layers(kind: str, base: str, method: str) -> None:
    if kind == "embedding" and "dora" in method:
        pytest.skip("row magnitudes are not for embeddings")
    check(kind, base, method)


def check(kind: str, base: str, method: str) -> None:
    model, x = compressed(kind, base)
    tuned = tnc.adapt(model, method, example=x)
    adapt_(tuned.model, "lora{rank=1}", name="second", example=x, seed=3)
    stirred(tuned)
    tuned.use(default=0.7, second=-1.5)
    y, weight = tuned.model(x), tuned.weight("0.weight")
    cores = dict(model[0].cores)
    tuned.merge()
    assert torch.allclose(tuned.model(x), y, rtol=1e-9, atol=1e-10)
    assert torch.allclose(tuned.weight("0.weight"), weight, rtol=1e-9, atol=1e-10)
    tuned.unmerge()
    plain = tuned.unload()
    layer = plain[0]
    assert type(layer) is StructuredLayer
    assert torch.allclose(plain(x), y, rtol=1e-9, atol=1e-10)
    assert torch.allclose(layer.weight, weight, rtol=1e-9, atol=1e-10)
    assert len(layer.structure.terms) >= 3
    bonds = [name for term in layer.structure.terms for name in term.equation.bonds]
    assert len(set(bonds)) == len(bonds)
    assert all(torch.equal(model[0].cores[name], cores[name]) for name in cores)


def test_rows_fold_into_one_core_or_become_one() -> None:
    """A core that carries all outputs takes the magnitudes; where there is none, one more does."""
    for base, more in (("low-rank", 0), ("tensor-train", 1)):
        model, x = compressed("linear", base)
        tuned = tnc.adapt(model, "dora{rank=2}", example=x)
        stirred(tuned)
        before = len(model[0].cores)
        found = tuned.unload()[0]
        assert len(found.cores) == before + 2 + more
        assert ("M" in found.cores) == bool(more)


@pytest.mark.parametrize("kind", ["dense", "structured", "tied", "attention"])
def test_a_state_loaded_while_merged_is_merged(kind: str) -> None:
    """Merged or not, a model computes the same after a state was loaded: of bases, of deltas."""
    case = {"structured": "compressed", "dense": "linear"}.get(kind, kind)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = CASES[case].make().double().eval()
        x = CASES[case].draw()
        x = x.double() if x.is_floating_point() else x
        tuned = tnc.adapt(model, "dora{rank=2}" if kind == "dense" else "lora{rank=2}", example=x)
        stirred(tuned)
        made.append(tuned)
    first, second = made
    wanted = first.model(x)
    state = copy.deepcopy(first.model.state_dict())
    second.merge()
    twin = copy.deepcopy(second.model)
    for model in (second.model, twin):
        assert not torch.allclose(model(x), wanted)
        model.load_state_dict(state)
        assert torch.allclose(model(x), wanted, rtol=1e-9, atol=1e-10)
    second.unmerge()
    assert torch.allclose(second.model(x), wanted, rtol=1e-9, atol=1e-10)
    second.merge()
    deltas = {name: v * 2 for name, v in state.items() if name.endswith("cores.B")}
    with second.disabled():
        second.model.load_state_dict(deltas, strict=False)
    changed = second.model(x)
    second.unmerge()
    assert torch.allclose(second.model(x), changed, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(changed, wanted)
    plain = second.unload()
    assert not any(module._load_state_dict_post_hooks for module in plain.modules())


def test_a_state_that_cannot_be_merged_is_refused() -> None:
    tuned = tnc.adapt(nn.Sequential(nn.Linear(4, 4)), "lora{rank=2}", example=torch.ones(1, 4))
    state = copy.deepcopy(tuned.model.state_dict())
    tuned.merge()
    state["0.weight"][0, 0] = torch.nan
    with pytest.raises(PlanError, match=r"merged weight 0\.weight is not finite"):
        tuned.model.load_state_dict(state)
    assert tuned.model(torch.ones(1, 4)).isnan().any(), "it computes with what was loaded"


def test_ties_stay_and_the_base_is_left_alone() -> None:
    torch.manual_seed(0)
    spec = tnc.Spec(
        version=1, round_to=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.8}]
    )
    x = torch.randint(0, 11, (2, 5))
    for model in (
        Tied().double(),
        tnc.compile(Tied().double(), spec, example=x).model,
    ):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        tuned = tnc.adapt(model, "lora{rank=2}", example=x)
        stirred(tuned)
        y = tuned.model(x)
        plain = tuned.unload()
        assert torch.allclose(plain(x), y, rtol=1e-9, atol=1e-10)
        own = [dict(m.named_parameters()) for m in (plain.table, plain.head)]
        assert own[0] and own[0].keys() == own[1].keys()
        assert all(own[0][name] is own[1][name] for name in own[0])
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_unload_of_no_active_adapter_is_the_base() -> None:
    model, x = compressed("linear", "low-rank")
    tuned = tnc.adapt(model, "lora{rank=2}", example=x)
    stirred(tuned)
    tuned.use()
    plain = tuned.unload()
    assert torch.allclose(plain(x), model(x), rtol=1e-12, atol=1e-12)
    assert plain[0].structure == model[0].structure


@pytest.mark.parametrize("structured", [False, True])
def test_rounding_is_said(structured: bool) -> None:
    """A sum of 16-bit weights is made in float32 and rounded once."""
    model, x = compressed("linear", "low-rank") if structured else (None, torch.randn(5, 10))
    model = (nn.Sequential(nn.Linear(10, 14)) if model is None else model).to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    tuned = tnc.adapt(model, "lora{rank=2}", example=x)
    stirred(tuned)
    (delta,) = tuned.deltas().values()
    base = model[0].weight.detach().float()
    added = delta.dense().detach()
    (drift,) = tuned.merge()
    tuned.unmerge()
    made = tuned.unload()[0].weight.detach()
    assert made.dtype == torch.bfloat16
    off = made.float() - (base + added)
    assert drift.largest == pytest.approx(float(off.abs().max()))
    assert drift.relative == pytest.approx(float(off.norm() / added.norm()))
    assert 0 < drift.relative < 0.02
    if not structured:
        assert torch.equal(made, (base + added).to(torch.bfloat16))


def test_what_is_not_finite_is_refused_whole() -> None:
    for model, x in (
        compressed("linear", "low-rank"),
        (nn.Sequential(nn.Linear(10, 14)).double(), torch.randn(5, 10).double()),
    ):
        tuned = tnc.adapt(model, "lora{rank=2}", example=x)
        y = tuned.model(x)
        (delta,) = tuned.deltas().values()
        value = delta.cores["A"].detach()[0, 0].clone()
        with torch.no_grad():
            delta.cores["A"][0, 0] = float("nan")
        for act in (tuned.merge, tuned.unload):
            with pytest.raises(PlanError, match="weight is not finite"):
                act()
        with torch.no_grad():
            delta.cores["A"][0, 0] = value
        assert torch.equal(tuned.model(x), y)
        assert tuned.names == ("default",)
