"""Every family through all passes with calibration data, on layers that passes treat apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tnc
from tnc.errors import TncError
from tnc.structures import families


class Net(nn.Module):
    """Looked up, strided, transposed, normalised; a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.into, self.norm = nn.Conv1d(8, 6, 3, stride=2, padding=1), nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 12, 4, stride=2, padding=1)
        self.mix, self.head = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.into(self.table(ids).mT)))
        x = self.up(x).mean(2)
        y: Tensor = self.head(torch.tanh(self.mix(torch.tanh(self.mix(x)))))
        return y


COMPOSED = {"dense", "search", "free-form", "stacked", "sum"}
DATA = list(torch.randint(0, 12, (4, 5, 8), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("family", sorted(set(families.all()) - COMPOSED))
def test_every_family_is_compiled_with_data(family: str) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    for ops in (("linear", "conv"), ("linear",)):
        rules = [{"match": "*", "op": op, "structure": family, "keep": 0.8} for op in ops]
        try:
            made = tnc.compile(net, tnc.Spec(version=1, round_to=1, rules=rules), calibration=DATA)
        except TncError:
            assert len(ops) > 1, f"{family} takes neither convolutions nor linear layers"
            continue
        assert torch.isfinite(made.model(DATA[0])).all()
        return
