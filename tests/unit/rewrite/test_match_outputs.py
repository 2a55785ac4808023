"""Outputs of compressed convolutions are matched to the original's, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import tnc

BATCHES = list(torch.randn(6, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
PASSES = ["fold-batch-norm", "find-sites", "factorize", "match-outputs", "keep-ties"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.two, self.head = nn.Conv2d(12, 12, 3, bias=False), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.two(torch.relu(self.bn(self.one(x)))))
        return self.head(x.mean((2, 3)))


def made(structure: Any, passes: list[str], calibrated: bool = True) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    net = Net().eval()
    rules = [
        {"match": "*", "op": "conv", "structure": structure, "keep": 0.5},
        {"match": "*", "structure": "dense"},
    ]
    spec = tnc.Spec(version=1, rules=rules, passes=passes)
    data: dict[str, Any] = {"calibration": BATCHES} if calibrated else {"example": BATCHES[0]}
    return tnc.compile(net, spec, **data), net


def error(model: nn.Module, net: nn.Module) -> float:
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return float((model(x) - net(x)).norm() / net(x).norm())


def lines(compiled: Any) -> tuple[str, ...]:
    return next(r.edits for r in compiled.records if r.name == "match-outputs")


def test_matching_lowers_the_error_and_says_what_it_left() -> None:
    for structure in ("tucker", "low-rank", "sparse"):
        plain, net = made(structure, [p for p in PASSES if p != "match-outputs"])
        better, _ = made(structure, PASSES)
        assert error(better.model, net) < error(plain.model, net)
        assert lines(better)[0] in [f"matched the outputs of {n} layers" for n in (1, 2)]
        assert "two: left, it has no bias" in lines(better)


def test_means_of_the_outputs_are_the_originals() -> None:
    compiled, net = made("tucker", PASSES)
    with torch.no_grad():
        mine, theirs = (torch.cat([m(x) for x in BATCHES]) for m in (compiled.model, net))
    assert torch.allclose(mine.mean(0), theirs.mean(0), atol=1e-5)


def test_without_data_or_convolutions_nothing_is_matched() -> None:
    compiled, _ = made("tucker", PASSES, calibrated=False)
    assert "needs calibration data" in lines(compiled)[0]
    spec = tnc.Spec(version=1, rules=[{"match": "*", "structure": "low-rank", "keep": 0.5}])
    linear = tnc.compile(nn.Sequential(nn.Linear(16, 16)), spec, calibration=[torch.randn(8, 16)])
    assert "no structured convolution" in lines(linear)[0]
