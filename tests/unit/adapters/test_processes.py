"""Adapters trained by two processes under DistributedDataParallel: as by one process."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import get_context

import tnc
from tnc.adapters import Adapters
from tnc.adapters.following import Followed, follow
from tnc.errors import BindError

METHODS = (
    "lora{rank=2}",
    "dora{rank=2}",
    "lora-pro{rank=2}",
    "lora-pro{rank=2, adam=true}",
    "fedsvd{rank=2, every=2}",
    "loqt{rank=2, gap=2}",
    "sara{share=0.4, nuclear=0.01}",
    "sora{rank=2, threshold=0.2}",
    "ggpo{rank=2, beta=0.1}",
    "gradnorm-lorp",
)
SHARDED = ("lora{rank=2}", "dora{rank=2}", "lora-pro{rank=2}", "fedsvd{rank=2, every=2}")
WHOLE = (
    "lora-pro{rank=2, adam=true}",
    "loqt{rank=2, gap=2}",
    "sara{share=0.4}",
    "ggpo{rank=2, beta=0.1}",
)
STEPS = 4


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 7, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 5, generator=generator, dtype=torch.float64)


def loss(y: Tensor, batch: Any) -> Tensor:
    return (y**2).mean()


def adapted(method: str, part: slice) -> Adapters:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    torch.manual_seed(99 + part.start)  # other global numbers in each process
    x, _ = drawn(0)
    halves = [x[:4], x[4:]] if part == slice(0, 8) else [x[part]]
    return tnc.adapt(model, method, calibration=halves, loss=loss, seed=1)


def train(adapters: Adapters, model: nn.Module, part: slice) -> Followed:
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.05)
    followed = follow(adapters, optimizer, seed=2)
    model.train()
    for step in range(STEPS):
        x, target = drawn(step + 1)
        optimizer.zero_grad()
        ((model(x[part]) - target[part]) ** 2).mean().backward()
        optimizer.step()
    return followed


def values(adapters: Adapters) -> list[Tensor]:
    return [core.detach() for d in adapters.deltas().values() for core in d.cores.values()]


def pruning_is_refused() -> None:
    adapters = adapted("sora{rank=2, threshold=100.0, prune_every=1}", slice(0, 4))
    parallel = nn.parallel.DistributedDataParallel(adapters.model)
    with pytest.raises(BindError, match="which its replicas would not learn of"):
        train(adapters, parallel, slice(0, 4))


def stirred(method: str, part: slice) -> Adapters:
    """Adapters that have been trained: their deltas are not zero."""
    adapters = adapted(method, part)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapters.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
    return adapters


def sharded(method: str, part: slice) -> Adapters:
    adapters = stirred(method, part)
    fully_shard(adapters.model[0])
    fully_shard(adapters.model[2])
    fully_shard(adapters.model)
    return adapters


def trained_sharded(method: str, part: slice) -> dict[str, Tensor]:
    adapters = sharded(method, part)
    train(adapters, adapters.model, part)
    return get_model_state_dict(adapters.model, options=StateDictOptions(full_state_dict=True))


def what_needs_whole_deltas_is_refused(part: slice) -> None:
    for method in WHOLE:
        adapters = sharded(method, part)
        with pytest.raises(BindError, match="it is sharded, and"):
            follow(adapters, torch.optim.SGD(adapters.parameters(), lr=0.05))


def member(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    try:
        found = {}
        for method in METHODS:
            part = slice(4 * rank, 4 * rank + 4)
            adapters = adapted(method, part)
            start = [value.clone() for value in values(adapters)]
            parallel = nn.parallel.DistributedDataParallel(adapters.model)
            followed = train(adapters, parallel, part)
            found[method] = (start, values(adapters), followed.events)
        torch.save(found, f"{folder}/{rank}.pt")
        shares = {method: trained_sharded(method, part) for method in SHARDED}
        torch.save(shares, f"{folder}/sharded-{rank}.pt")
        what_needs_whole_deltas_is_refused(part)
        pruning_is_refused()
        distributed.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # an ordinary exit may find gloo's threads still running, and abort


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    context = get_context("forkserver")
    members = [context.Process(target=member, args=(rank, str(tmp_path))) for rank in range(2)]
    for each in members:
        each.start()
    for each in members:
        each.join(400)
        if each.is_alive():
            each.kill()
    assert [each.exitcode for each in members] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for method in METHODS:
        alone = adapted(method, slice(0, 8))
        start = [value.clone() for value in values(alone)]
        followed = train(alone, alone.model, slice(0, 8))
        ours, theirs = first[method], second[method]
        for a, b, c in zip(ours[0], theirs[0], start):
            assert torch.equal(a, b), method
            assert torch.allclose(a, c, rtol=0, atol=1e-10), method
        for a, b, c in zip(ours[1], theirs[1], values(alone)):
            assert torch.equal(a, b), method
            assert torch.allclose(a, c, rtol=1e-6, atol=1e-7), method
        assert [e[:2] for e in ours[2]] == [e[:2] for e in followed.events]
    gathered = torch.load(tmp_path / "sharded-0.pt")
    for method in SHARDED:
        alone = stirred(method, slice(0, 8))
        train(alone, alone.model, slice(0, 8))
        own = alone.model.state_dict()
        assert gathered[method].keys() == own.keys()
        for name, value in own.items():
            assert torch.allclose(gathered[method][name], value, rtol=1e-9, atol=1e-10), name
