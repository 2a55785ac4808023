"""`folded`: a compiled model with its adapters in it, whose plan tells what it is now."""

from __future__ import annotations

import copy
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnc
from tests.compiled import spec
from tests.laws.adapters_data import CASES
from tnc.decide.pipeline import DEFAULT
from tnc.errors import PlanError
from tnc.nn import StructuredLayer
from tnc.nn.shared_input import groups_of

KINDS = ("linear", "rows", "conv", "transposed", "tied", "attention", "recurrent")


def compiled(model: nn.Module, x: Tensor, structure: str = "low-rank") -> tnc.Compiled:
    rules = [{"match": "*", "structure": structure, "keep": 0.6}]
    return tnc.compile(model, tnc.Spec(version=1, round_to=1, rules=rules), example=x)


def tuned_of(made: tnc.Compiled, x: Tensor) -> tnc.adapters.Adapters:
    tuned = tnc.adapt(made.model, "lora{rank=1}", example=x)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1
    return tuned


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loads(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = CASES[kind].make().eval(), CASES[kind].draw()
    made = compiled(model, x)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    tuned = tuned_of(made, x)
    whole = tnc.adapters.folded(made, tuned)
    wanted = tuned.model(x)
    assert torch.allclose(whole.model(x), wanted, atol=1e-5)
    assert not torch.allclose(made.model(x), wanted, atol=1e-3)
    assert tuned.names == ("default",), "the adapters stay"
    now = made.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    tnc.save(whole, tmp_path / "a")
    again = tnc.load(tmp_path / "a", model=model)
    assert torch.allclose(again(x), wanted, atol=1e-5)
    assert tnc.verify(tmp_path / "a", model=model).ok
    flags = [p.requires_grad for p in made.model.parameters()]
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in whole.model.parameters()
    ]
    assert not all(flags) or all(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(
    ("kind", "structure"),
    [(kind, "low-rank") for kind in KINDS]
    + [(kind, "tensor-train") for kind in ("linear", "conv")],
)
def test_its_plan_counts_what_is_there(kind: str, structure: str) -> None:
    """The oracle is the plan of a compilation into the very structures that the merge made."""
    torch.manual_seed(0)
    model, x = CASES[kind].make().eval(), CASES[kind].draw()
    made = compiled(model, x, structure)
    whole = tnc.adapters.folded(made, tuned_of(made, x))
    total = whole.plan.total
    assert total.params == sum(p.numel() for p in whole.model.parameters()) > made.plan.total.params
    sites = {site.name: site for site in made.trace.sites}
    for entry, was in zip(whole.plan.entries, made.plan.entries):
        layers = [m for m in whole.model.modules() if isinstance(m, StructuredLayer)]
        assert entry.structure in [layer.structure for layer in layers]
        assert entry.structure is not None and was.structure is not None
        assert entry.params == sum(n.numel() for n in cores_of(whole.model, entry.structure))
        assert entry.flops == flops_of(entry.structure, sites[entry.site]), entry.site
        assert was.flops == flops_of(was.structure, sites[was.site]), "the oracle"
    gained = sum(e.flops for e in whole.plan.entries) - sum(e.flops for e in made.plan.entries)
    assert total.flops - made.plan.total.flops == gained > 0
    assert whole.plan.scope.flops - made.plan.scope.flops == gained


def cores_of(model: nn.Module, structure: tnc.Structure) -> list[Tensor]:
    found = [m for m in model.modules() if isinstance(m, StructuredLayer)]
    return list(next(m for m in found if m.structure == structure).cores.values())


def flops_of(structure: tnc.Structure, site: tnc.decide.site.Site) -> int:
    """Count by the site that capture found, as plans do."""
    from tnc.derive.cost import cost
    from tnc.derive.dense import dense

    if not site.rebuilt:
        return cost(structure, site.work, site.itemsize).flops
    return site.cost.flops + sum(dense(term).order.flops for term in structure.terms)


def test_shared_factors_count_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)).eval()
    family = {"kind": "free-form", "equation": "B[l o r] A[r i] : i -> l o"}
    rules = [{"match": "*", "structure": family, "ranks": {"r": 4}, "joint": "all"}]
    x = torch.randn(4, 12)
    made = tnc.compile(model, tnc.Spec(version=1, round_to=1, rules=rules), example=x)
    (entry,) = made.plan.entries
    assert len(entry.members) == 2
    tuned = tnc.adapt(made.model, "lora{rank=1}", match="0", example=x)
    assert tuned.deltas()["0.weight"].site.aliases == ("0.weight",), "the other is not tied to it"
    whole = tnc.adapters.folded(made, tuned)
    (now,) = whole.plan.entries
    assert (now.params, entry.params) == (12 * 4 * 3 + 24, 12 * 4 * 3)
    assert now.flops == entry.flops + 2 * 4 * 24
    assert whole.plan.total.params == now.params + 24
    tnc.save(whole, tmp_path / "a")
    assert torch.allclose(tnc.load(tmp_path / "a", model=model)(x), tuned.model(x), atol=1e-5)


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) + torch.tanh(self.k(x)) * self.v(x)  # type: ignore[no-any-return]


def test_a_layer_that_no_longer_shares_its_input_leaves_its_group(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Three(), torch.randn(6, 16)
    rule = {"match": "*", "structure": "low-rank", "keep": 0.5}
    asked = spec(rule, shares=True, passes=(*DEFAULT, "fuse-horizontally"))
    made = tnc.compile(net, asked, example=x)
    assert groups_of(made.model) == ((("k", "q", "v"), ("A",)),)
    tuned = tnc.adapt(made.model, "lora{rank=2}", match="q", example=x)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1
    tnc.save(tnc.adapters.folded(made, tuned), tmp_path / "a")
    again = tnc.load(tmp_path / "a", model=net)
    assert groups_of(again) == ((("k", "v"), ("A",)),)
    assert torch.allclose(again(x), tuned.model(x), atol=1e-5)


def test_errors_are_not_those_of_the_base() -> None:
    torch.manual_seed(0)
    made = compiled(
        nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)), x := torch.randn(4, 12)
    )
    tuned = tnc.adapt(made.model, "lora{rank=1}", match="0", example=x)
    whole = tnc.adapters.folded(made, tuned)
    entry, left = whole.plan.entry("0.weight"), whole.plan.entry("2.weight")
    assert entry.error is None and entry.relative is None
    assert entry.reason.startswith("merged with default, its error is not known")
    assert "not known" in whole.plan.explain("0.weight")
    assert left == made.plan.entry("2.weight")
    assert tnc.Plan.from_json(whole.plan.to_json()) == whole.plan
    first, second = whole.reparams
    assert isnan(first.residual) and first.new[-1][1] in dict(whole.model.named_parameters())
    assert second == made.reparams[1]


def test_adapters_put_in_place_and_one_beside(tmp_path: Path) -> None:
    """As the hint of `save` says: the compiled model itself was adapted, and a layer trained."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)), torch.randn(4, 12)
    made = compiled(net, x)
    tuned = tnc.adapters.adapt_(made.model, "lora{rank=1}", match="0", example=x)
    made.model[2].requires_grad_(True)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1
    whole = tnc.adapters.folded(made, tnc.adapters.of(made.model))
    tnc.save(whole, tmp_path / "a")
    assert torch.allclose(tnc.load(tmp_path / "a", model=net)(x), made.model(x), atol=1e-5)
    beside = whole.plan.entry("2.weight")
    assert beside.error is None and beside.structure == made.plan.entry("2.weight").structure


def test_what_does_not_fit() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 10)), torch.randn(4, 12)
    made = compiled(net, x)
    tuned = tuned_of(made, x)
    tuned.use()
    with pytest.raises(PlanError, match="none of the adapters is in use"):
        tnc.adapters.folded(made, tuned)
    with pytest.raises(PlanError, match="of another model"):
        tnc.adapters.folded(made, tnc.adapt(net, "lora{rank=1}", example=x))
    with pytest.raises(PlanError, match="no adapters"):
        tnc.adapters.folded(made, tnc.adapters.of(copy.deepcopy(made.model)))
