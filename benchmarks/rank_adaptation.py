"""Training with ranks chosen by a tolerance: DLRT-Tucker beside dense, LeNet and ResNet-20.

LeNet is trained from scratch. ResNet-20 starts from published weights, since from scratch it needs
more epochs than a benchmark has; dense and DLRT then train on, for the same steps, on the same
batches with the same learning rates. Accuracy is on clean test images, mean of the last epochs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnc
from benchmarks.convnets import Images, LeNet
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.resnet import read_resnet20
from tnc.rank_adaptation.ranks import Ranks

NAME = "rank-adaptation"

POINTS = 1.0
"""Accuracy may be this much below that of the dense run, in points."""
LAST = 3


@dataclass(frozen=True)
class Case:
    """One network: its start, data, rules for the structures, and how it is trained."""

    name: str
    start: Callable[[Path], nn.Module]
    jpeg: bool
    rules: tuple[dict[str, object], ...]
    schedule: str
    epochs: int
    rate: float
    batch: int = 128
    decay: float = 5e-4


TUCKER = {"structure": "tucker", "ranks": "full"}
CASES = (
    Case(
        "LeNet",
        lambda _: LeNet(),
        True,
        ({"match": ["0", "3"], **TUCKER}, {"match": "7", "structure": "low-rank", "ranks": "full"}),
        "dlrt{tolerance=0.03}",
        8,
        0.05,
    ),
    Case(
        "ResNet-20",
        lambda data: read_resnet20(data / "cifar10" / "resnet20.safetensors"),
        False,
        ({"match": "layer*.conv?", **TUCKER},),
        "dlrt{tolerance=0.12}",
        5,
        0.01,
    ),
)


@dataclass(frozen=True)
class Run:
    """What one training run came to; seconds a step, bytes at the end of a forward pass."""

    accuracy: float
    params: int
    seconds: float
    activations: int
    state: int
    first_peak: int
    last_peak: int
    ranks: Ranks | None


def run(arguments: Arguments) -> Outcome:
    """Train both networks twice; `--quick` does one epoch of each."""
    if arguments.data is None or not (arguments.data / "cifar10").is_dir():
        raise SystemExit("rank-adaptation needs --data DIR with cifar10/train.npz and others")
    folder = arguments.data / "cifar10"
    test, clean = Images.read(folder / "test.npz"), Images.read(folder / "train.npz")
    rows, goals, profiles, figures = [], [], [], {}
    for case in CASES:
        train = clean.joined(Images.read(folder / "train_jpeg.npz")) if case.jpeg else clean
        runs = {
            kind: _train(case, arguments, train, test, adaptive=kind == "DLRT")
            for kind in ("dense", "DLRT")
        }
        rows += [_row(case, kind, done) for kind, done in runs.items()]
        lost = runs["dense"].accuracy - runs["DLRT"].accuracy
        goals.append(Goal(f"{case.name} accuracy lost, points", lost, POINTS))
        share = runs["DLRT"].params / runs["dense"].params
        goals.append(Goal(f"{case.name} parameters over dense", share, 1.0))
        ranks = runs["DLRT"].ranks
        assert ranks is not None
        profiles += [
            (case.name, work.path, _ranks(work.start), _ranks(work.ranks)) for work in ranks.works
        ]
        figures[case.name] = {
            kind: {k: v for k, v in vars(done).items() if k != "ranks"}
            for kind, done in runs.items()
        } | {"schedule": case.schedule, "profile": ranks.ranks}
    columns = (
        "network",
        "run",
        "accuracy %",
        "parameters",
        "ms a step",
        "state MB",
        "activations MB",
        "peak MB, first step",
        "peak MB, last step",
    )
    found = table(columns, rows), table(("network", "layer", "ranks at first", "at last"), profiles)
    return Outcome(found, tuple(goals), figures)


def _train(case: Case, arguments: Arguments, train: Images, test: Images, *, adaptive: bool) -> Run:
    assert arguments.data is not None  # asked above
    torch.manual_seed(0)
    model = case.start(arguments.data).train()
    if adaptive:
        model = _structured(case, model, test.x[:1])
    optimizer = torch.optim.SGD(
        model.parameters(), lr=case.rate, momentum=0.9, weight_decay=case.decay, nesterov=True
    )
    ranks = tnc.adapt_ranks(model, case.schedule, optimizer) if adaptive else None
    step: Callable[[Tensor], object] = ranks.step if ranks else lambda _: optimizer.step()
    epochs = 1 if arguments.quick else case.epochs
    steps = epochs * (len(train.y) // case.batch)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.rate, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    seconds, accuracies, peaks = [], [], []
    for epoch in range(epochs):
        order = torch.randperm(len(train.y), generator=generator)
        for picked in order[: len(order) // case.batch * case.batch].split(case.batch):
            x, y = train.batch(picked, generator)
            if not seconds:
                peaks.append(_held(model, optimizer, x, y))
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            step(loss)
            rates.step()
            seconds.append(time.perf_counter() - started)
        if epoch >= epochs - LAST:
            accuracies.append(test.accuracy(model))
    peaks.append(_held(model, optimizer, x, y))
    state = _state(optimizer)
    first, last = (sum(part) for part in peaks)
    last_steps = seconds[-len(seconds) // 2 :]
    return Run(
        mean(accuracies),
        sum(p.numel() for p in model.parameters()),
        median(last_steps),
        peaks[-1][2],
        state,
        first + state,
        last,
        ranks,
    )


def _structured(case: Case, model: nn.Module, example: Tensor) -> nn.Module:
    spec = tnc.Spec(version=1, rules=[*case.rules, {"match": "*", "structure": "dense"}])
    return tnc.compile(model, spec, example=example).model.train()


def _held(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> tuple[int, int, int]:
    """Return bytes of parameters with gradients, of optimizer state, of what backward needs."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    probe = copy.deepcopy(model)
    own |= {p.untyped_storage().data_ptr() for p in probe.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        functional.cross_entropy(probe(x), y)
    parameters = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    return parameters, _state(optimizer), sum(kept.values())


def _state(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _row(case: Case, kind: str, done: Run) -> tuple[object, ...]:
    sizes = (done.state, done.activations, done.first_peak, done.last_peak)
    return (
        case.name,
        kind,
        f"{done.accuracy:.2f}",
        f"{done.params:,}",
        f"{1e3 * done.seconds:.1f}",
        *(f"{size / 1e6:.2f}" for size in sizes),
    )


def _ranks(ranks: dict[str, int]) -> str:
    return ", ".join(f"{bond} {rank}" for bond, rank in ranks.items())
