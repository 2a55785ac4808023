"""What `auto` decides: when state moves, when it starts anew, and how much it then counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tnc.binding import Report, bind
from tnc.binding.moments import LOST, SANE, TRUST, Verdict, agreed
from tnc.net import Structure, parse_network
from tnc.nn import LinearView, StructuredLayer

STEPS, SIZE = 60, 12


def bound(rank: int, policy: str = "auto", scale: float = 1.0) -> tuple[dict, Report]:
    """Train a matrix, make it low-rank, bind; probe losses are `scale` times those of training.

    Returns the state of A before by slot, and after, and the report.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False)).double()
    x, y = torch.randn(64, SIZE).double(), torch.randn(64, SIZE).double()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4)
    for _ in range(STEPS):
        adam.zero_grad()
        (net(x) - y).square().mean().backward()
        adam.step()
    u, s, v = torch.linalg.svd(net[0].weight.detach())
    text = f"B[o r] A[r i] : i -> o | o={SIZE} r={rank} i={SIZE}"
    root = s[:rank].sqrt()
    made = copy.deepcopy(net)
    cores = {"B": u[:, :rank] * root, "A": root[:, None] * v[:rank]}
    made[0] = StructuredLayer(Structure.of(parse_network(text)), LinearView(), cores)

    def probe(model: nn.Module) -> Iterator[Tensor]:
        for _ in range(2):
            yield scale * (model(x) - y).square().mean()

    report = bind(net, made, adam, policy=policy, probe=probe).report
    return adam.state[made[0].cores["A"]], report


def test_what_moved_counts_as_few_steps_and_keeps_its_means() -> None:
    auto, report = bound(SIZE)
    pulled, _ = bound(SIZE, "pull")
    assert {line.deed for line in report.lines} == {"moved"}
    assert float(auto["step"]) == TRUST < STEPS == float(pulled["step"])
    first = auto["exp_avg"] / (1 - 0.9**TRUST), pulled["exp_avg"] / (1 - 0.9**STEPS)
    assert torch.allclose(*first, rtol=1e-12)
    ratio = (auto["exp_avg_sq"] / (1 - 0.999**TRUST)) / (pulled["exp_avg_sq"] / (1 - 0.999**STEPS))
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-10)  # one factor
    probed, _ = bound(SIZE, "probe")
    energies = auto["exp_avg_sq"].sum() / (1 - 0.999**TRUST), probed["exp_avg_sq"].sum()
    assert torch.isclose(energies[0], energies[1] / (1 - 0.999**STEPS), rtol=1e-10)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_gradients_of_another_size_start_it_anew(scale: float) -> None:
    state, report = bound(SIZE, scale=scale)
    assert {line.deed for line in report.lines} == {"reset"}
    assert not SANE[0] <= report.lines[0].ratio <= SANE[1]
    assert float(state["step"]) == 0 and not bool(state["exp_avg_sq"].any())


def test_a_weight_that_lost_most_of_its_norm_starts_anew() -> None:
    """A tenth of the rank keeps less than half of the norm; the scale would still fit."""
    state, report = bound(1)
    assert {line.deed for line in report.lines} == {"reset"} and float(state["step"]) == 0
    assert all("of their norm or more" in x.reason or "lost" in x.reason for x in report.lines)
    assert {line.deed for line in bound(1, "pull")[1].lines} == {"moved"}


def test_all_start_anew_where_most_was_lost() -> None:
    moves, lost = Verdict(True, "moves"), Verdict(False, "lost", lost=True)
    assert agreed([moves, lost], [10, 10]) == [moves, lost]
    found = agreed([moves, lost], [9, 10])
    assert [verdict.moves for verdict in found] == [False, False] and found[1] is lost
    assert f"{LOST:g}" in found[0].reason
    assert agreed([], []) == []


def test_a_lifted_second_moment_is_never_below_the_squared_momentum() -> None:
    torch.manual_seed(1)
    text = f"B[o r] A[r i] : i -> o | o={SIZE} r=2 i={SIZE}"
    cores = {"B": torch.randn(SIZE, 2).double(), "A": torch.randn(2, SIZE).double()}
    layer = StructuredLayer(Structure.of(parse_network(text)), LinearView(), cores)
    old = nn.Sequential(layer)
    adam = torch.optim.AdamW(old.parameters(), lr=1e-2)
    for _ in range(5):
        adam.zero_grad()
        (old(torch.randn(8, SIZE).double()) - 1).square().mean().backward()
        adam.step()
    new = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False)).double()
    new[0].weight.data.copy_(layer.weight)
    bind(old, new, adam)
    state = adam.state[new[0].weight]
    assert bool((state["exp_avg_sq"] >= state["exp_avg"].square()).all())
    assert bool(state["exp_avg"].any())
