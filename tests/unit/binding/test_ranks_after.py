"""Ranks that adapt after a bind: what bind keeps in the cores' state stays."""

from __future__ import annotations

import torch

import tnc


def test_the_share_of_the_decay_stays() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Tanh(), torch.nn.Linear(24, 24))
    x, y = torch.randn(32, 24), torch.randn(32, 24)
    adam = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    (net(x) - y).square().mean().backward()
    adam.step()
    rule = {"match": "*", "structure": "low-rank", "keep": 0.8}
    made = tnc.compile(net, tnc.Spec(version=1, rules=[rule]), example=x)
    tnc.bind(net, made, adam, policy="pull")
    ranks = tnc.adapt_ranks(made.model, "dlrt{tolerance=0.1}", adam)
    for _ in range(3):
        adam.zero_grad()
        loss = (made.model(x) - y).square().mean()
        loss.backward()
        ranks.step(loss)
    for name, core in made.model.named_parameters():
        if ".cores." in name:
            assert adam.state[core]["decay_share"] == 0.5, name
