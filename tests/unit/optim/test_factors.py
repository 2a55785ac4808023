"""ScaledGD and LoRA-RITE: steps of the product that do not see how it is divided."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.unit.optim.stepping import apart, gradients
from tnc.errors import BindError
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer
from tnc.optim.factors import FactorRule, pairs_of
from tnc.optim.rules.factor_adam_matrix import LoraRite, inverse_root
from tnc.optim.rules.scaledgd import ScaledGD

GAUGE = torch.tensor([[2.0, 1.0, 0.0], [0.5, -1.0, 0.3], [0.0, 0.7, 3.0]], dtype=torch.float64)


def factors(gauge: Tensor | None = None) -> tuple[nn.Parameter, nn.Parameter]:
    u, v = gradients((7, 3), 1, 5)[0], gradients((3, 5), 1, 6)[0]
    if gauge is not None:
        u, v = u @ gauge, torch.linalg.solve(gauge, v)
    return nn.Parameter(u), nn.Parameter(v)


def products(rule: FactorRule, u: nn.Parameter, v: nn.Parameter, given: list[Tensor]) -> Tensor:
    """Train U V by gradients of the product, and return it."""
    for gradient in given:
        u.grad, v.grad = gradient @ v.detach().mT, u.detach().mT @ gradient
        rule.step()
    return (u @ v).detach()


def pair_rule(kind: type[FactorRule], gauge: Tensor | None, **options: object):
    u, v = factors(gauge)
    return kind([u, v], pairs=[(u, v)], **options), u, v  # type: ignore[call-arg]


def test_scaledgd_without_damping_does_not_see_the_gauge() -> None:
    """6e-15 was measured, and 1e-2 with damping .1."""
    given = gradients((7, 5), 6)
    plain = products(*pair_rule(ScaledGD, None, lr=0.05, damping=0.0), given)
    turned = products(*pair_rule(ScaledGD, GAUGE, lr=0.05, damping=0.0), given)
    assert apart(turned, plain) < 1e-12
    plain = products(*pair_rule(ScaledGD, None, lr=0.05, damping=0.1), given)
    turned = products(*pair_rule(ScaledGD, GAUGE, lr=0.05, damping=0.1), given)
    assert apart(turned, plain) > 1e-4


def test_scaledgd_is_the_formula() -> None:
    given = gradients((7, 5), 6)
    rule, u, v = pair_rule(ScaledGD, None, lr=0.05, damping=0.2)
    a, b, eye = u.detach().clone(), v.detach().clone(), torch.eye(3, dtype=torch.float64)
    for g in given:
        new = a - 0.05 * g @ b.mT @ torch.linalg.inv(b @ b.mT + 0.2 * eye)
        b = b - 0.05 * torch.linalg.inv(a.mT @ a + 0.2 * eye) @ a.mT @ g
        a = new
    assert apart(products(rule, u, v, given), a @ b) < 1e-13
    assert set(rule.state[u]) == {"step"}


def test_lora_rite_does_not_see_the_gauge() -> None:
    given = gradients((7, 5), 12)
    plain = products(*pair_rule(LoraRite, None, lr=0.05), given)
    turned = products(*pair_rule(LoraRite, GAUGE, lr=0.05), given)
    assert apart(turned, plain) < 1e-9
    u, v = factors(GAUGE)
    before = nn.Parameter((u @ v).detach())
    assert apart(turned, before.detach()) > 1e-2


def test_lora_rite_is_the_formula() -> None:
    given = gradients((7, 5), 8)
    rule, u, v = pair_rule(LoraRite, None, lr=0.05)
    values = {"u": u.detach().clone(), "v": v.detach().clone().mT}
    state: dict[str, list[Tensor]] = {}
    for t, g in enumerate(given, 1):
        now = dict(values)
        for name, other in (("u", "v"), ("v", "u")):
            q, r = torch.linalg.qr(now[other])
            whole = (g if name == "u" else g.mT) @ now[other]
            small = whole @ torch.linalg.inv(r)
            zero = torch.zeros(3, 3, dtype=torch.float64)
            m, second, lost, old = state.get(name, [torch.zeros_like(small), zero, 0.0, q])
            p = q.mT @ old
            turned = p @ second @ p.mT
            gap = torch.linalg.eigvalsh(second) - torch.linalg.eigvalsh(turned)
            lost = 0.999 * (lost + gap.abs().max())
            second = 0.999 * turned + 0.001 * small.mT @ small / len(small)
            level = (second + lost * torch.eye(3)) / (1 - 0.999**t)
            values_, vectors = torch.linalg.eigh(level)
            root = vectors @ torch.diag(values_**-0.5) @ vectors.mT
            m = 0.9 * m @ p.mT + 0.1 * small @ root
            state[name] = [m, second, lost, q]
            step = m / (1 - 0.9**t) @ torch.linalg.inv(r).mT
            values[name] = now[name] - 0.05 * step
    assert apart(products(rule, u, v, given), values["u"] @ values["v"].mT) < 1e-6
    assert apart(rule.state[u]["escaped"], torch.as_tensor(state["u"][2])) < 1e-6
    assert float(state["u"][2]) > 0


def test_nothing_escapes_within_a_column_space() -> None:
    """The other factor changes its basis, not its span: V turns exactly."""
    rule, u, v = pair_rule(LoraRite, None, lr=0.0)
    products(rule, u, v, gradients((7, 5), 3))
    before, basis = rule.state[u]["second"].clone(), rule.state[u]["basis"].clone()
    v.data = torch.linalg.solve(GAUGE, v.data)
    products(rule, u, v, [torch.zeros(7, 5, dtype=torch.float64)])
    after, turned = rule.state[u]["second"], rule.state[u]["basis"]
    weight = basis @ before @ basis.mT
    assert apart(turned @ after @ turned.mT, 0.999 * weight) < 1e-12
    assert float(rule.state[u]["escaped"]) / float(before.norm()) < 1e-13


def test_a_factor_of_zeros_moves_only_its_partner() -> None:
    u, v = nn.Parameter(torch.zeros(7, 3)), nn.Parameter(gradients((3, 5), 1)[0].float())
    rule, start = LoraRite([u, v], pairs=[(u, v)], lr=0.1), v.detach().clone()
    products(rule, u, v, [g.float() for g in gradients((7, 5), 1)])
    assert torch.equal(v.detach(), start)
    assert float(u.detach().norm()) > 0.01
    products(rule, u, v, [g.float() for g in gradients((7, 5), 9)])
    assert torch.isfinite(u).all()
    assert not torch.equal(v.detach(), start)


def test_inverse_roots_leave_rounding_alone() -> None:
    found = inverse_root(torch.diag(torch.tensor([4.0, 1e-12]))[None], torch.zeros(1), 0.0)
    assert apart(found[0], torch.diag(torch.tensor([0.5, 0.0]))) < 1e-7


def layer(text: str) -> StructuredLayer:
    generator = torch.Generator().manual_seed(0)
    return StructuredLayer.initialised(
        Structure.of(parse_network(text)), LinearView(), std=0.3, generator=generator
    )


BLOCKS = "L[o1 o2 b r] R[o2 a b r] : (a b) -> (o1 o2) | a=3 b=2 o1=3 o2=2 r=2"


def test_block_trains_are_solved_leg_by_leg() -> None:
    made = layer(BLOCKS).double()
    left, right = made.cores["L"], made.cores["R"]
    start = left.detach().clone(), right.detach().clone()
    rule = ScaledGD(made.parameters(), made, lr=0.1, damping=0.3)
    made(torch.randn(4, 6, dtype=torch.float64)).square().sum().backward()
    rule.step()
    for o in range(2):
        for b in range(2):
            gram = start[1][o, :, b].mT @ start[1][o, :, b] + 0.3 * torch.eye(2).double()
            wanted = start[0][:, o, b] - 0.1 * left.grad[:, o, b] @ torch.linalg.inv(gram)
            assert apart(left.detach()[:, o, b], wanted) < 1e-12
            gram = start[0][:, o, b].mT @ start[0][:, o, b] + 0.3 * torch.eye(2).double()
            wanted = start[1][o, :, b] - 0.1 * right.grad[o, :, b] @ torch.linalg.inv(gram)
            assert apart(right.detach()[o, :, b], wanted) < 1e-12


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("B[o r] A[r i] : i -> o | i=4 o=3 r=2", 1),
        (BLOCKS, 1),
        ("B[o r]! A[r i] : i -> o | i=4 o=3 r=2", 0),
        ("U[o r] G[r s] V[s i] : i -> o | i=4 o=3 r=2 s=2", 0),
        ("A[o1 i1] C[o2 i2] : (i1 i2) -> (o1 o2) | i1=2 i2=2 o1=2 o2=2", 0),
    ],
)
def test_pairs_are_two_trainable_cores_with_a_bond(text: str, count: int) -> None:
    assert len(list(pairs_of(nn.Sequential(layer(text))))) == count


@pytest.mark.parametrize("kind", [ScaledGD, LoraRite])
def test_paired_rules_train_resume_and_copy(kind: type[FactorRule]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer("B[o r] A[r i] : i -> o | i=8 o=6 r=3"), nn.Tanh(), layer(BLOCKS))
    x, y = torch.randn(32, 8), torch.randn(32, 6)

    def go(model: nn.Module, rule: FactorRule, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            rule.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            rule.step()
            losses.append(float(loss.detach()))
        return losses

    rule = kind(net.parameters(), net, lr=0.02)  # type: ignore[call-arg]
    assert all(rule.paired(p) for p in net.parameters())
    losses = go(net, rule, 40)
    assert losses[-1] < losses[0]
    other = copy.deepcopy(net)
    resumed = kind(other.parameters(), other, lr=0.02)  # type: ignore[call-arg]
    resumed.load_state_dict(copy.deepcopy(rule.state_dict()))
    copied, read = copy.deepcopy((net, rule)), pickle.loads(pickle.dumps((net, rule)))
    expected = go(net, rule, 10)
    assert go(other, resumed, 10) == expected
    assert go(*copied, 10) == expected
    assert go(*read, 10) == expected


def test_memory_of_a_factor() -> None:
    rule, u, v = pair_rule(LoraRite, None)
    products(rule, u, v, gradients((7, 5), 2))
    for own in (u, v):
        slots = [t for slot, t in rule.state[own].items() if slot != "step"]
        assert 4 * sum(t.numel() for t in slots) == rule.bytes_of(own, rule.param_groups[0])


def test_other_parameters_are_refused_or_plain() -> None:
    u, v = factors()
    alone = nn.Parameter(torch.ones(3))
    with pytest.raises(BindError, match="no factor of a pair"):
        ScaledGD([u, v, alone], pairs=[(u, v)])
    rule = ScaledGD([u, v, alone], pairs=[(u, v)], others="plain", lr=0.5)
    alone.grad = torch.ones(3)
    rule.step()
    assert torch.equal(alone.detach(), torch.full((3,), 0.5))
    with pytest.raises(BindError, match="no product"):
        ScaledGD([u, v], pairs=[(v, u)])
    with pytest.raises(BindError, match="in two pairs"):
        ScaledGD([u, v], pairs=[(u, v), (u, nn.Parameter(v.detach().clone()))])
