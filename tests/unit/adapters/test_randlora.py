"""RandLoRA: the equation is the sum of bases, PEFT's order is its permuted product, bases are one.

Oracles are written from the formulas, base by base, and are seen to tell the two orders apart.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tnc
from tnc.adapters import Adapters, storing
from tnc.adapters.delta import Delta


def made(outputs: int, inputs: int, options: str) -> tuple[Adapters, Delta]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, outputs).double())
    tuned = tnc.adapt(net, f"randlora{{{options}}}", example=torch.ones(1, inputs).double())
    (delta,) = tuned.deltas().values()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in delta.trained.values():
            parameter += torch.randn(parameter.shape, generator=generator).double()
    return tuned, delta


def by_bases(delta: Delta, peft: bool) -> Tensor:
    """Return `sum_n B_n diag(L_n) A diag(G_n)`, or PEFT's flattened product: (large, small)."""
    b, a, scale, gamma = (delta.cores[name].detach() for name in "BALG")
    ranks, count = scale.shape
    if not peft:
        return sum(
            (b[:, n] @ scale[:, n].diag() @ a @ gamma[n].diag() for n in range(count)),
            torch.zeros(b.shape[0], a.shape[1]).double(),
        )
    drawn = b.flatten(1).reshape(-1, count, ranks)  # as PEFT keeps it: (D, n, r)
    left = drawn.flatten(1)
    right = (scale[:, :, None] * a[:, None, :] * gamma[None]).flatten(0, 1)
    return left @ right


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("shape", [(12, 8), (7, 11), (9, 9)])
def test_equation_is_the_sum_of_bases(shape: tuple[int, int], peft: bool) -> None:
    order = "peft" if peft else "paper"
    _, delta = made(*shape, f"rank=3, alpha=6, order={order}")
    large = by_bases(delta, peft)
    whole = large if shape[0] >= shape[1] else large.T
    count = ceil(min(shape) / 3)
    factor = 6 / 3 if peft else 6 / (3 * count**0.5)
    assert torch.allclose(delta.dense(), factor * whole, rtol=1e-12, atol=1e-12)
    if peft:  # B read the paper's way gives another product
        b = delta.cores["B"].detach()
        kept = b.flatten(1).reshape(-1, count, 3)
        a, scale, gamma = (delta.cores[name].detach() for name in "ALG")
        other = torch.einsum("onr,rn,ri,ni->oi", kept, scale, a, gamma)
        assert not torch.allclose(other, large, rtol=1e-3, atol=1e-3)


def test_ranks() -> None:
    """One value in all of G leaves rank r; the trained G reaches every direction."""
    _, delta = made(12, 8, "rank=2")
    assert int(torch.linalg.matrix_rank(delta.dense().detach())) == 8
    with torch.no_grad():
        delta.cores["G"].fill_(0.3)
    found = torch.linalg.svdvals(delta.dense().detach())
    assert float(found[1] / found[0]) > 1e-3
    assert float(found[2] / found[0]) < 1e-12


def test_start_and_count() -> None:
    net = nn.Sequential(nn.Linear(10, 6))
    tuned = tnc.adapt(net, "randlora{rank=4}", example=torch.ones(1, 10))
    (delta,) = tuned.deltas().values()
    count = ceil(6 / 4)
    assert not delta.cores["L"].any()
    assert torch.equal(delta.cores["G"], torch.full((count, 6), 1 / 6))
    assert sum(p.numel() for p in tuned.parameters()) == count * (4 + 6)
    assert delta.factor == pytest.approx(20 / count**0.5)


def test_bases_are_one_tensor_in_memory_and_on_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 24))
    x = torch.randn(2, 16)
    tuned = tnc.adapt(net, "randlora{rank=4}", example=x)
    for again in (tuned, stored(tuned, net, tmp_path)):
        deltas = list(again.deltas().values())
        for name in "AB":
            cores = [delta.cores[name] for delta in deltas]
            assert cores[0] is cores[1]
            assert len({core.untyped_storage().data_ptr() for core in cores}) == 1
            assert not any(core.requires_grad for core in cores)
    assert torch.equal(stored(tuned, net, tmp_path).model(x), tuned.model(x))
    shared = [k for k in load_file(tmp_path / "a" / storing.TENSORS) if k.startswith("shared/")]
    assert len(shared) == 2
    sizes = sum(load_file(tmp_path / "a" / storing.TENSORS)[k].numel() for k in shared)
    assert sizes == 4 * 16 + 24 * 4 * 4
    first, third = (tuned.deltas()[f"{k}.weight"].cores for k in (0, 2))
    assert torch.equal(first["A"][:, :12], third["A"])
    assert torch.equal(first["B"][:16, :3], third["B"])


def stored(tuned: Adapters, net: nn.Module, folder: Path) -> Adapters:
    storing.save(tuned, folder / "a", force=True)
    return storing.load(net, folder / "a")


@pytest.mark.parametrize("bases, share", [("sparse", 1 / 3), ("very-sparse", 40**-0.5)])
def test_ternary_bases(bases: str, share: float) -> None:
    net = nn.Sequential(nn.Linear(30, 40))
    tuned = tnc.adapt(net, f"randlora{{rank=5, bases={bases}}}", example=torch.ones(1, 30))
    (delta,) = tuned.deltas().values()
    drawn = delta.cores["B"].detach()
    values = drawn.unique()
    assert len(values) == 3 and values[1] == 0 and values[0] == -values[2]
    assert float((drawn != 0).float().mean()) == pytest.approx(share, rel=0.2)
    assert float(drawn.std()) == pytest.approx(1, rel=1e-3)
