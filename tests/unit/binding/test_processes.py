"""Bound optimizers in two processes: DDP and FSDP2 train on as one process does."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import tnc
from tnc.errors import BindError
from tnc.optim.rules.galore import GaLore
from tnc.optim.rules.lion import Lion
from tnc.optim.rules.mkor import MKOR
from tnc.optim.rules.muon import Muon
from tnc.optim.rules.shampoo import Shampoo

LIMIT = 150
"""Seconds after which processes that still run are ended."""

BATCHES = torch.randn(12, 8, 14, generator=torch.Generator().manual_seed(1)).double()
TARGETS = torch.randn(12, 8, 6, generator=torch.Generator().manual_seed(2)).double()
RULES = [
    {"match": "0", "structure": "low-rank", "keep": 0.9},
    {"match": "2", "structure": "tensor-train", "keep": 0.9},
    {"match": "*", "structure": "dense"},
]
Wrap = Callable[[nn.Module], nn.Module]


def net() -> nn.Module:
    """Return a model whose sides two processes cannot share evenly."""
    torch.manual_seed(0)
    parts = [nn.Linear(14, 15, bias=False), nn.Tanh(), nn.Linear(15, 9, bias=False), nn.Tanh()]
    return nn.Sequential(*parts, nn.Linear(9, 6, bias=False)).double()


def compiled(model: nn.Module) -> nn.Module:
    return tnc.compile(model, tnc.Spec(version=1, rules=RULES), example=BATCHES[0]).model


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.3),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "lion": lambda m: Lion(m.parameters(), lr=1e-3, weight_decay=0.3),
    "muon": lambda m: Muon(m.parameters(), lr=1e-2, weight_decay=0.3),
    "galore": lambda m: GaLore(m.parameters(), rank=3, update_every=3),
    "shampoo": lambda m: Shampoo(m.parameters(), lr=1e-2, update_every=2, weight_decay=0.3),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, share: slice) -> None:
    for step in steps:
        optimizer.zero_grad()
        mse_loss(model(BATCHES[step, share]), TARGETS[step, share]).backward()
        optimizer.step()


def probe(model: nn.Module, share: slice) -> Iterator[Tensor]:
    for step in (0, 1):
        yield mse_loss(model(BATCHES[step, share]), TARGETS[step, share])


def values(model: nn.Module) -> list[Tensor]:
    found = [parameter.detach() for parameter in model.parameters()]
    return [getattr(value, "full_tensor", lambda value=value: value)() for value in found]


def assert_near(found: nn.Module, wanted: nn.Module, first: list[Tensor]) -> None:
    for a, b, start in zip(values(found), values(wanted), first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
        assert not torch.equal(a, start)


def life(
    kind: str, share: slice, wrap: Wrap
) -> tuple[nn.Module, torch.optim.Optimizer, tnc.binding.Report]:
    """Train, compile, bind, train on; return the bound optimizer's model."""
    model = net()
    wrapped = wrap(model)
    optimizer = OPTIMIZERS[kind](model)
    train(wrapped, optimizer, range(4), share)
    made = wrap(compiled(model))
    report = tnc.bind(wrapped, made, optimizer, probe=partial(probe, share=share)).report
    train(made, optimizer, range(4, 8), share)
    return made, optimizer, report


EVERY = slice(None)


def ddp_trains_on_as_one_process(kind: str, rank: int, folder: Path) -> None:
    made, _, report = life(kind, slice(rank, None, 2), DistributedDataParallel)
    alone, _, expected = life(kind, EVERY, lambda model: model)
    assert [line.deed for line in report.lines] == [line.deed for line in expected.lines]
    assert_near(made, alone, values(compiled(net())))


FULL = sharded.StateDictOptions(full_state_dict=True)


def shard(model: nn.Module, **options: bool) -> nn.Module:
    for layer in model.children():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def whole_of(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str):
    """Return a model that is not sharded, and its optimizer, with the values of sharded ones."""
    whole = net()
    whole.load_state_dict(sharded.get_model_state_dict(model, options=FULL))
    gathered = OPTIMIZERS[kind](whole)
    state = sharded.get_optimizer_state_dict(model, optimizer, options=FULL)
    sharded.set_optimizer_state_dict(whole, gathered, state, options=FULL)
    return whole, gathered


def sharded_life(
    kind: str, share: slice, warmup: int = 0
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train sharded, gather, compile, bind, shard again, train on."""
    model = shard(net())
    optimizer = OPTIMIZERS[kind](model)
    train(model, optimizer, range(4), share)
    model, optimizer = whole_of(model, optimizer, kind)
    made = compiled(model)
    asked = {"warmup": warmup} if warmup else {"probe": partial(probe, share=EVERY)}
    tnc.bind(model, made, optimizer, **asked)
    state = sharded.get_optimizer_state_dict(made, optimizer, options=FULL)
    shard(made)
    again = tnc.follow(OPTIMIZERS[kind](made), made)
    sharded.set_optimizer_state_dict(made, again, state, options=FULL)
    train(made, again, range(4, 8), share)
    return made, again


def fsdp_trains_on_as_one_process(kind: str, rank: int, folder: Path) -> None:
    made, _ = sharded_life(kind, slice(rank, None, 2))
    alone, _, _ = life(kind, EVERY, lambda model: model)
    assert_near(made, alone, values(compiled(net())))


def what_fsdp_keeps_whole(rank: int, folder: Path) -> None:
    model = shard(net())
    for kind, slot, divided in (("lion", "exp_avg", True), ("muon", "momentum_buffer", False)):
        optimizer = OPTIMIZERS[kind](model)
        train(model, optimizer, range(1), EVERY)
        held = [optimizer.state[p][slot] for p in model.parameters()]
        sizes = [getattr(t, "to_local", lambda t=t: t)().numel() for t in held]
        whole = [p.numel() for p in model.parameters()]
        assert (sum(sizes) < sum(whole)) is divided, kind


def what_is_sharded_is_not_bound(rank: int, folder: Path) -> None:
    model = net()
    made = shard(compiled(model))
    optimizer = OPTIMIZERS["adamw"](model)
    with pytest.raises(BindError, match="is sharded") as told:
        tnc.bind(model, made, optimizer)
    assert told.value.where == "0.cores.A" and "bind before fully_shard" in str(told.value)


def a_sharded_checkpoint_goes_on(kind: str, rank: int, folder: Path) -> None:
    """Bits of a run that is saved in shards, loaded and goes on, and of one that is not."""
    share = slice(rank, None, 2)
    made, optimizer = sharded_life(kind, share, warmup=6)
    at = str(folder / f"saved-{kind}")
    model_state, state = sharded.get_state_dict(made, optimizer)
    checkpoint.save({"model": model_state, "optimizer": state}, checkpoint_id=at)
    train(made, optimizer, range(8, 12), share)
    other = shard(compiled(net()))
    fresh = tnc.follow(OPTIMIZERS[kind](other), other)
    model_state, state = sharded.get_state_dict(other, fresh)
    read = {"model": model_state, "optimizer": state}
    checkpoint.load(read, checkpoint_id=at)
    sharded.set_state_dict(
        other, fresh, model_state_dict=read["model"], optim_state_dict=read["optimizer"]
    )
    train(other, fresh, range(8, 12), share)
    for a, b in zip(values(other), values(made), strict=True):
        assert torch.equal(a, b)


def watched(model: nn.Module) -> MKOR:
    return MKOR(model.parameters(), model, lr=1e-2, update_every=2, others="plain")


def mkor_sees_what_all_processes_saw(rank: int, folder: Path) -> None:
    first = values(net())
    alone = net()
    train(alone, watched(alone), range(6), EVERY)
    model = net()
    train(DistributedDataParallel(model), watched(model), range(6), slice(rank, None, 2))
    assert_near(model, alone, first)
    for again in (True, False):  # hooks see the shards, or the whole weight
        divided = shard(net(), reshard_after_forward=again)
        train(divided, watched(divided), range(6), slice(rank, None, 2))
        assert_near(divided, alone, first)


CHECKS: dict[str, Callable[[int, Path], None]] = {
    **{f"ddp-{k}": partial(ddp_trains_on_as_one_process, k) for k in OPTIMIZERS},
    **{f"fsdp-{k}": partial(fsdp_trains_on_as_one_process, k) for k in OPTIMIZERS},
    **{f"saved-{k}": partial(a_sharded_checkpoint_goes_on, k) for k in ("adamw", "lion", "galore")},
    "fsdp-whole": what_fsdp_keeps_whole,
    "fsdp-bind": what_is_sharded_is_not_bound,
    "mkor": mkor_sees_what_all_processes_saw,
}


def work(rank: int, folder: str) -> None:
    """One of two processes: run every check, write down what came of each, stop at an error."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    for name, check in CHECKS.items():
        try:
            check(rank, Path(folder))
            said = ""
        except BaseException:
            said = traceback.format_exc()
        (Path(folder) / f"{name}.{rank}").write_text(said)
        if said:  # the other process may wait for this one: what comes after says nothing
            break
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit may find gloo's threads still running, and abort


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what two processes wrote; they are started once for all checks."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("gloo is not built in")
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=work, args=(rank, str(folder))) for rank in range(2)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + LIMIT
    for worker in workers:
        worker.join(max(0.0, end - time.monotonic()))
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
    return folder


@pytest.mark.parametrize("check", CHECKS)
def test_in_two_processes(check: str, outcomes: Path) -> None:
    for rank in range(2):
        file = outcomes / f"{check}.{rank}"
        assert file.exists(), "it was not run to its end: a check before it failed, or time was out"
        said = file.read_text()
        assert not said, f"process {rank}: {said}"
