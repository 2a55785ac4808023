"""Every adaptation method on one task at equal trained parameters: the loss after so many steps.

The task is to tell of a sentence of Python's documentation which of eight topics it is from. The
model is MiniLM; its last two layers are adapted, all six linear weights of each, so the states that
the first four make are computed once. The head is fitted to the plain model's embeddings of 160
sentences that are not used again, and frozen: all methods begin at its loss and train nothing but
the adapter. Sizes are such that as many parameters are trained as by LoRA of rank 4, or the most
below. AdamW without decay, at a rate from a grid of five, chosen by the mean training loss of the
last steps of a run with a seed of its own; then three seeds, of order and start. Loss is cross
entropy on 160 held-out sentences, after 45 steps of 16 sentences, each seen once. LoRA-SB begins
with a step of its default, which is about what its authors' warm-up makes of theirs, and in a row
of its own with one of the rate that it trains at.

How much sooner LoRA-GA and LoRA-SB reach LoRA's last loss is told twice: each at its own best rate,
and all three at one rate, as their papers compare them, for every rate but the two highest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import tnc
from benchmarks.adapted import Sized, at_rate, sized, train
from benchmarks.outcome import Arguments, Goal, Outcome, table
from benchmarks.topics import Task, prepared
from tnc.errors import TncError

NAME = "adapter-learning"
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}

STEPS, EVERY, LAST = 45, 5, 15
CALIBRATED = 4
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
EQUAL = RATES[:3]
SEEDS, OWN = (0, 1, 2), 100
FASTER = ("lora-ga", "lora-sb")
MATCH = "layers.*"


def run(arguments: Arguments) -> Outcome:
    """Choose rates, train three seeds; `--quick` takes one rate, one seed, few steps, two methods.

    Runs are kept in `--checkpoint`, one file each. Goals: LoRA-GA and LoRA-SB reach LoRA's last
    loss in at most half the steps.
    """
    torch.set_num_threads(1)
    task = prepared()
    steps = EVERY if arguments.quick else STEPS
    only = "lora,lora-ga" if arguments.quick else arguments.only
    known = sized(task.model, task.states[:2], MATCH, without=("original",))
    runs = Runs(task, steps, arguments.checkpoint)
    figures: dict[str, Any] = {}
    for name, one in known.items():
        if only and name not in only.split(","):
            continue
        if one.method is None:
            figures[name] = {"left out": one.reason}
            continue
        figures[name] = tried(runs, name, one, arguments.quick)
        print(name, figures[name], flush=True)
    equal = at_one_rate(runs, known, arguments.quick) if not only or "lora" in only else {}
    return reported(task, figures, equal, steps)


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs on a task, each kept in a file of a folder."""

    task: Task
    steps: int
    folder: Path | None

    def curve(self, name: str, one: Sized, rate: float, seed: int) -> dict[str, Any]:
        """Return held-out losses every few steps and the mean of the last training losses."""
        plain = name.replace(", ", "-").replace(" ", "-")
        file = None if self.folder is None else self.folder / f"{plain}-{rate:g}-{seed}.json"
        if file is not None and file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        found = self._curve(name, one, rate, seed)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found), encoding="utf-8")
        return found

    def _curve(self, name: str, one: Sized, rate: float, seed: int) -> dict[str, Any]:
        task = self.task
        assert one.method is not None
        method = at_rate(name, one.method, rate)
        batches = [task.batch(seed, step) for step in range(CALIBRATED)]
        adapters = tnc.adapt(
            task.model,
            method,
            match=MATCH,
            example=task.states[:2],
            calibration=[(states,) for states, _ in batches],
            loss=_Loss(batches),
            seed=seed,
        )
        held: list[float] = []

        def seen(step: int) -> None:
            if seed != OWN and step % EVERY == 0:
                held.append(task.loss(adapters.model))

        def loss(step: int) -> Tensor:
            states, topics = task.batch(seed, step)
            return functional.cross_entropy(adapters.model(states), topics)

        losses = train(adapters, method, rate, self.steps, loss, seen)
        return {"held": held, "last": mean(losses[-LAST:])}


class _Loss:
    """The loss of calibration batches, which a start may run several times over."""

    def __init__(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.topics = {id(states): topics for states, topics in batches}

    def __call__(self, output: Tensor, batch: Any) -> Tensor:
        states = batch[0] if isinstance(batch, tuple) else batch
        return functional.cross_entropy(output, self.topics[id(states)])


def tried(runs: Runs, name: str, one: Sized, quick: bool) -> dict[str, Any]:
    """Return a method's figures: its rate, its losses by seed, what it trains."""
    try:
        rates = {
            rate: runs.curve(name, one, rate, OWN)["last"]
            for rate in (RATES[2:3] if quick else RATES)
        }
        usable = {rate: value for rate, value in rates.items() if value == value}
        if not usable:
            return {"left out": "no rate of the grid trains it"}
        rate = min(usable, key=usable.__getitem__)
        curves = [runs.curve(name, one, rate, seed)["held"] for seed in SEEDS[: 1 if quick else 3]]
    except TncError as error:
        return {"left out": error.message}
    return {
        "method": str(at_rate(name, one.method, rate)),
        "trained": one.trained,
        "rate": rate,
        "training loss by rate": {f"{rate:g}": value for rate, value in rates.items()},
        "curve": [mean(values) for values in zip(*curves)],
        "losses": [curve[-1] for curve in curves],
    }


def at_one_rate(runs: Runs, known: Mapping[str, Sized], quick: bool) -> dict[str, Any]:
    """Return by rate the mean curves of LoRA and of those that are to be faster."""
    return {
        f"{rate:g}": {
            name: [
                mean(values)
                for values in zip(
                    *(runs.curve(name, known[name], rate, seed)["held"] for seed in SEEDS)
                )
            ]
            for name in ("lora", *FASTER)
        }
        for rate in (EQUAL[2:] if quick else EQUAL)
    }


def reached(curve: Sequence[float], wanted: float) -> int | None:
    """Return the first step at which a curve is as low as wanted."""
    return next((EVERY * k for k, value in enumerate(curve) if value <= wanted), None)


def reported(task: Task, figures: dict[str, Any], equal: dict[str, Any], steps: int) -> Outcome:
    """Return the tables, best first, and how soon each reaches LoRA's last loss."""
    done = {name: found for name, found in figures.items() if "losses" in found}
    wanted = mean(done["lora"]["losses"])
    rows, goals = [], []
    for name, found in sorted(done.items(), key=lambda item: mean(item[1]["losses"])):
        values = found["losses"]
        spread = stdev(values) if len(values) > 1 else float("nan")
        taken = reached(found["curve"], wanted)
        found |= {"mean": mean(values), "spread": spread, "steps to LoRA's loss": taken}
        shown = f"over {steps}" if taken is None else str(taken)
        rows.append((name, found["trained"], found["rate"], mean(values), spread, shown))
        if name in FASTER:
            goals.append(_sooner(f"{name}, each at its best rate", taken, steps))
    for name, found in figures.items():
        if name not in done:
            rows.append((name, "-", "-", "-", "-", found["left out"]))
    columns = ("method", "trained", "rate", "held-out loss", "spread", "steps to LoRA's loss")
    others = []
    for rate, curves in equal.items():
        last = curves["lora"][-1]
        for name in FASTER:
            taken = reached(curves[name], last)
            goals.append(_sooner(f"{name}, all at {rate}", taken, steps))
            shown = f"over {steps}" if taken is None else str(taken)
            others.append((name, rate, last, curves[name][-1], shown))
    single = ("method", "rate", "LoRA's last loss", "its own", "steps to LoRA's loss")
    start = {"before": task.loss(task.model), "steps": steps, "at one rate": equal}
    tables = (table(columns, rows), table(single, others))
    return Outcome(tables, tuple(goals), start | figures)


def _sooner(what: str, taken: int | None, steps: int) -> Goal:
    share = float("inf") if taken is None else taken / steps
    return Goal(f"steps to LoRA's last loss, as a share: {what}", share, 0.5)
